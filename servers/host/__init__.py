"""What this machine, a model's folder and the installed packages are."""
