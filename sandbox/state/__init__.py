"""The files in which sandboxes are recorded, and the locks that order the commands that change them."""
