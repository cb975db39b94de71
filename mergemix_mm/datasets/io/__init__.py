"""Readers of files: records in JSON and tables, the images that they name, COCO annotations, plain pickles."""
