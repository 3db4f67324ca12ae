//! Opens stores next to the present one, and promotes a restored one. `service/transfer` uses it through `Stores`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use zeroize::Zeroizing;

use super::promotion;
use crate::config::{Config, Database, credentials};
use crate::records::Records;
use crate::records::embedded::Embedded;
use crate::records::mysql::{MySql, Options, Tls};
use crate::seal::MasterKey;
use crate::service::transfer::{Opened, Stores, Target};
use crate::service::{Result, ServiceError};

pub struct Beside {
    state_dir: PathBuf,
    database: Database,
    configuration: Option<PathBuf>,
    master_key_is_a_credential: bool,
}

impl Beside {
    pub fn new(config: &Config) -> Self {
        let credential = credentials::directory().and_then(|directory| credentials::file(&directory, "master.key"));
        Self {
            state_dir: config.state_dir.clone(),
            database: config.database.clone(),
            configuration: config.file.clone(),
            master_key_is_a_credential: credential.is_some(),
        }
    }

    fn is_embedded(&self) -> bool {
        self.database.url.is_empty()
    }

    fn failed(&self, what: &str) -> impl FnOnce(std::io::Error) -> ServiceError {
        let place = format!("{what} in {}", self.state_dir.display());
        move |error| ServiceError::Refused(format!("{place}: {error}"))
    }

    async fn open_embedded(&self, name: &str) -> Result<Arc<dyn Records>> {
        let path = self.state_dir.join(name);
        let opened = tokio::task::spawn_blocking(move || Embedded::open(&path)).await;
        Ok(Arc::new(opened.map_err(ServiceError::internal)?.map_err(|error| ServiceError::Refused(error.to_string()))?))
    }
}

#[async_trait]
impl Stores for Beside {
    fn present(&self) -> String {
        if self.is_embedded() { embedded_name(&self.state_dir) } else { database_name(&self.database.url) }
    }

    async fn open(&self, target: &Target) -> Result<Opened> {
        match target {
            Target::Embedded if self.is_embedded() => {
                Err(ServiceError::Refused("the records are in the embedded store already".into()))
            }
            Target::Embedded => Ok(Opened {
                records: self.open_embedded("records").await?,
                name: embedded_name(&self.state_dir),
                next: "remove `[database] url` from the configuration, and restart the daemon".into(),
            }),
            Target::Database { url, tls, ca } => {
                let Database { tls: known_tls, ca: known_ca, connections, timeout_seconds, .. } = &self.database;
                if *url == self.database.url {
                    return Err(ServiceError::Refused("the records are in this database already".into()));
                }
                let options = Options {
                    url: url.clone(),
                    tls: if tls.unwrap_or(*known_tls) { Tls::Required } else { Tls::Off },
                    ca: ca.clone().or_else(|| (!known_ca.as_os_str().is_empty()).then(|| known_ca.clone())),
                    connections: *connections as usize,
                    timeout: Duration::from_secs((*timeout_seconds).into()),
                };
                let refused = |error: crate::records::RecordsError| {
                    ServiceError::Refused(format!("{}: {error}", database_name(url)))
                };
                // The driver's message about an invalid URL might contain the password.
                let records = MySql::new(&options).map_err(|_| ServiceError::Refused("this is not mysql://user:password@host:port/name; write special characters of the password as %XX".into()))?;
                records.prepare().await.map_err(refused)?;
                Ok(Opened {
                    records: Arc::new(records),
                    name: database_name(url),
                    next: "set `[database] url` to it in the configuration of every daemon, and restart them".into(),
                })
            }
        }
    }

    async fn open_beside(&self) -> Result<Option<Arc<dyn Records>>> {
        if !self.is_embedded() {
            return Ok(None);
        }
        promotion::clear(&self.state_dir).map_err(self.failed("cannot restore"))?;
        self.open_embedded(promotion::BESIDE).await.map(Some)
    }

    async fn promote(&self, master_key: Option<&MasterKey>) -> Result<()> {
        if self.is_embedded() {
            return promotion::announce(&self.state_dir, master_key).map_err(self.failed("cannot restore"));
        }
        master_key.map_or(Ok(()), |key| Ok(key.write(&self.state_dir.join("master.key"))?))
    }

    fn spool(&self) -> PathBuf {
        self.state_dir.join("restore.spool")
    }

    fn configuration(&self) -> Result<Option<Zeroizing<String>>> {
        let read = |path: &PathBuf| {
            let failed =
                |error| ServiceError::Refused(format!("cannot read the configuration {}: {error}", path.display()));
            std::fs::read_to_string(path).map(Zeroizing::new).map_err(failed)
        };
        self.configuration.as_ref().map(read).transpose()
    }

    fn master_key_is_a_credential(&self) -> bool {
        self.master_key_is_a_credential
    }
}

fn embedded_name(state_dir: &std::path::Path) -> String {
    format!("the embedded store in {}", state_dir.join("records").display())
}

/// Returns the URL without user, password and parameters.
fn database_name(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    // A password may hold an unescaped `@`: the host follows the last one.
    let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    format!("mysql://{}", place.split('?').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_named_without_its_password() {
        for (url, name) in [
            ("mysql://u:secret@db.test:3306/authd?pool_min=1", "mysql://db.test:3306/authd"),
            ("mysql://u:sec@ret/x@db.test/authd", "mysql://db.test/authd"),
            ("mysql://db.test/authd", "mysql://db.test/authd"),
            ("u:secret@db.test/authd", "mysql://db.test/authd"),
        ] {
            assert_eq!(database_name(url), name);
        }
    }
}
