"""Whether a run fits into its GPUs, before anything is started, and what to change where it does not."""
