"""The pages in the browser; `pages.mount_pages` is the way in, and slow to import."""
