"""Ideas of research as small changes: patches of the six files, and EWC as a file of its own. See lab/HACKS.md."""
