"""The commands, one file each with its help, its examples and ``run``; imports everything, is imported by nothing."""
