"""The commands, one file each with its help, its examples and ``run``. No other package imports them."""
