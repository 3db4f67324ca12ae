//! The data keys in force on this node.

use crate::seal::{KeyId, KeyRing};
use crate::service::core::boot::no_server_key;
use crate::service::{Core, Result};

impl Core {
    pub(in crate::service) async fn reload_ring(&self) -> Result<KeyId> {
        // Reads the keys first. A key is removed only after every value was sealed with a newer one. So the server's
        // key, which is read afterwards, can be opened with these keys.
        let keys = self.records.sealing_key_list().await?;
        let server_key = self.records.server_key_fetch().await?.ok_or_else(no_server_key)?;
        self.hot.keep_keys(&keys, &server_key)?;
        let keys: Vec<_> = keys.into_iter().map(|key| (key.id, key.sealed)).collect();
        let ring = KeyRing::unlock(&self.secrets.master, &keys)?;
        let active = ring.active();
        self.ring.store(std::sync::Arc::new(ring));
        Ok(active)
    }
}
