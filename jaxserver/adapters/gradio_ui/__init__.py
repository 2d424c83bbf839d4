"""The pages in the browser; `pages.mount_pages` is the way in, and slow to import."""

from jaxserver.adapters.gradio_ui.stubs import leave_stubs

leave_stubs()
