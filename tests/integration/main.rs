//! One binary for all integration tests: the real daemon, the real wrapper and the real Codex, in clean homes, offline.

mod support;

mod backups;
mod canary;
mod certificates;
mod cli;
mod controls;
mod crash;
mod dashboard;
mod database;
mod database_tls;
mod degraded;
mod disk;
mod durability;
mod e2e;
mod escape;
mod forms;
mod galera;
mod hosts;
mod journal;
mod limits;
mod listen;
mod metrics;
mod moving;
mod oidc;
mod outages;
mod people;
mod refusals;
mod roles;
mod runner;
mod sandbox;
mod sign_in;
mod state_format;
mod torture;
mod vectors;
mod wrapper;
