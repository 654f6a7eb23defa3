"""What is loaded into a production engine's own processes; the only room that imports one.

An engine finds it through its plugin entry point. Nothing is installed into the engine's environment: the launcher
puts a folder with the package and its metadata on ``PYTHONPATH`` (:mod:`kvload.servers.plugins.injection`). Modules
here must therefore import in an environment that has the engine, torch and numpy, but none of kvload's other
dependencies.
"""
