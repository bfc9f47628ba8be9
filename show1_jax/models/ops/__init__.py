"""Functions of arrays, each with the fastest implementation for the platform.

The platform is that of the mesh that `jax.set_mesh` set, or JAX's default one; see
`parallel.mesh.current_platform`. It is read while a program is traced, and costs nothing
when the program runs.
"""
