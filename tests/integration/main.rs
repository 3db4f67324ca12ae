//! One binary for all integration tests: the real daemon, the real wrapper and the real Codex, in clean homes, offline.

mod support;

mod canary;
mod certificates;
mod cli;
mod crash;
mod durability;
mod e2e;
mod hosts;
mod journal;
mod refusals;
mod vectors;
mod wrapper;
