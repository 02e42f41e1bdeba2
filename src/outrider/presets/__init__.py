"""One documented function per paper. A preset is a named choice of parts; its docstring is the method's page."""
