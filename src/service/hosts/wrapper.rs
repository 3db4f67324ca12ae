//! The wrapper as a host gets it: the bash `cdx` with the host's own values baked in, or a native program.

use std::sync::atomic::Ordering;

use time::OffsetDateTime;

use crate::hot::HotHost;
use crate::model::digest::Digest;
use crate::model::secret::Secret;
use crate::service::hosts::enrol::api_key_place;
use crate::service::hosts::programs::{NativeProgram, NativeTarget};
use crate::service::{Hosts, Result, ServiceError, hosts::bake};

pub struct Wrapper {
    pub version: &'static str,
    pub script: Secret,
    pub digest: Digest,
    pub updated_at: OffsetDateTime,
}

impl Hosts {
    pub fn wrapper(&self, host: &HotHost) -> Result<Wrapper> {
        let script = self.bake_wrapper(host, &self.core.policy().base_url)?;
        let version = bake::wrapper_version(self.wrappers_trust_system());
        Ok(Wrapper { version, digest: script.digest(), script, updated_at: host.updated_at })
    }

    /// The wrapper, downloaded by the host itself: from then on it trusts the authorities of today.
    pub fn download_wrapper(&self, host: &HotHost) -> Result<Wrapper> {
        let wrapper = self.wrapper(host)?;
        host.fetched_wrapper(self.core.platform.now());
        self.note_wrapper_fetched();
        Ok(wrapper)
    }

    /// The native program for a machine. It holds no authorities, so the host trusts the same ones as before.
    pub fn native_program(&self, target: NativeTarget) -> Option<&NativeProgram> {
        self.programs.get(target)
    }

    /// The digest of a host's wrapper, cached beside the host: every answer contains it, and baking a wrapper costs
    /// more than the rest of the call.
    pub(in crate::service) fn wrapper_digest(&self, host: &HotHost) -> Result<Digest> {
        // Read before the policy: a digest that is baked while the policy changes belongs to the old revision.
        let revision = self.core.policy_revision.load(Ordering::SeqCst);
        if let Some(digest) = host.wrapper_digest.with(&revision, |digest| *digest) {
            return Ok(digest);
        }
        let digest = self.wrapper(host)?.digest;
        host.wrapper_digest.put(revision, digest);
        Ok(digest)
    }

    pub(in crate::service) fn bake_wrapper(&self, host: &HotHost, base_url: &str) -> Result<Secret> {
        self.with_values(host, base_url, bake::wrapper)
    }

    pub(in crate::service) fn bake_installer(&self, host: &HotHost, base_url: &str) -> Result<Secret> {
        self.with_values(host, base_url, bake::installer)
    }

    fn with_values<T>(
        &self,
        host: &HotHost,
        base_url: &str,
        bake: impl FnOnce(&bake::Values<'_>) -> std::result::Result<T, bake::BakeError>,
    ) -> Result<T> {
        let policy = self.core.policy();
        let key = self.core.ring.load().open(&api_key_place(host.id), &host.api_key)?;
        let key = Secret::new(std::str::from_utf8(&key).map_err(ServiceError::internal)?);
        Ok(bake(&bake::Values {
            base_url,
            api_key: &key,
            fqdn: host.fqdn.as_str(),
            ca_pem: &policy.trusted_ca_pem,
            trusts_system: self.wrappers_trust_system(),
            codex_release_url: &policy.codex_release_url,
            codex_release_sha256: &policy.codex_release_sha256,
            codex_npm: "",
            programs: self.programs.digests(),
        })?)
    }
}
