"""From a YAML file and a command line to one validated model of options; one clear sentence where that fails."""
