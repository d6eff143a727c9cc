"""Export: what leaves the toolkit. Everything written here is read back and compared with its source before it gets
its name.
"""
