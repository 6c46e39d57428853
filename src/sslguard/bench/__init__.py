"""One harness for every scheme and every attack: a grid of encoder × scheme × attack × seed from one TOML file.

`config` reads the file, `plan` cuts the grid in cells, `work` does them, `cells` and `cluster` run them, `rows` and
`summary` say what was found, `page` shows it.
"""
