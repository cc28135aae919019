"""Just enough controllers: each looks again at whatever it cares about when something changes, and acts."""
