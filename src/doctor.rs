//! Looks at this machine: what works, what will be slower or missing, and the remedy.
