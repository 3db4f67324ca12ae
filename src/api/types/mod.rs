//! Request and answer bodies that several files of this room use.

pub mod auth;
pub mod hosts;
