"""Many runs as one experiment: which, carried out by several processes, recorded once, and put into tables."""
