//! Configuration: one TOML file, the environment over it, flags over both.

pub mod settings;
