"""Many runs as one experiment: recipe, plan, records, tables and figures."""
