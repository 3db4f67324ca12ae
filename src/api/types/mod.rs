//! Bodies of requests and answers that several files of this room use.

pub mod auth;
