"""Plans, checkpoints and reports as self-contained HTML pages, drawn by a little script of their own."""
