"""Where is my message? What the sidecars of a mesh remember of each event, and how they are asked for it."""
