"""What pages, tables and pictures have in common. It knows no domain."""
