"""Reading of files: images, JSON, tables, COCO annotations and pickles without code."""
