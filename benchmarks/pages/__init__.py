"""Writers of the generated parts of README and docs, each from results that another benchmark measured."""
