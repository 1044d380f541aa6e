//! The embedded cluster: API server, controllers and runtime put together.
