"""What an encoder is and where it comes from: loading, saving, preprocessing. Libraries load on use."""
