"""The imperative shell around the core: here are the threads, queue and clock."""
