"""One file per Ray role: everything that says `import ray`."""
