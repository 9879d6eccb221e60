"""What is put around a model: MODEL+PLUGIN. `base.py` wraps, `channel.py` adds a content score; one file a plug-in (MRdIB: `mrdib/`)."""
