//! Who is let in, and by whose signature: what the use cases changed of that is put in force here.

use std::sync::Arc;

use tokio::sync::watch;

use super::listen_file::Bound;
use super::tls::Tls;
use super::{DaemonError, background};
use crate::config::Config;
use crate::listener::Connections;
use crate::service::Service;

/// What depends on who is let in, and by whose signature.
pub struct Certificates {
    pub config: Config,
    pub bound: Bound,
    pub tls: Arc<Tls>,
    pub admins: Connections,
}

impl Certificates {
    /// Puts in force what the use cases changed: an authority that was rolled over, a certificate that was revoked. A crash
    /// in between is mended by the next start, which reads it all.
    pub async fn follow(self, service: Arc<Service>, mut stopping: watch::Receiver<bool>) {
        let mut changes = service.trust_changes();
        let mut authorities = service.authorities();
        loop {
            tokio::select! {
                () = background::stopped(&mut stopping) => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
            let now = service.authorities();
            if !Arc::ptr_eq(&now, &authorities) {
                authorities = now;
                match self.reload() {
                    Ok(()) => service.set_policy(self.tls.policy(&self.config, &self.bound)),
                    Err(error) => {
                        log::error!(event = "authorities_not_in_force", cause:% = error; "the authorities changed and could not be put in force; restart the daemon")
                    }
                }
            }
            self.admins.cut_unless(|fingerprint| service.admitted_certificate(fingerprint).is_some());
        }
    }

    fn reload(&self) -> Result<(), DaemonError> {
        self.tls.reload()?;
        self.tls.write_files(&self.config.state_dir)
    }
}
