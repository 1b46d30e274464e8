"""Files that others may have written: text made safe to show (text), files replaced at once (write), arrays with checksums
(arrays, chunks), and tables, figures and JSON files that are checked (whole). Nothing is imported here, since the shell's help
needs `text` only and `arrays` brings xarray."""
