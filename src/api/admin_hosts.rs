//! `/admin/hosts`: registers, lists, shows, changes and removes hosts.

use std::sync::Arc;

use poem_openapi::OpenApi;
use poem_openapi::param::{Header, Path, Query};

use super::Tag;
use super::area::Area;
use super::errors::{Answer, ok};
use super::flags::{Flag, SecureFlag};
use super::guards::{Admin, Principal, Viewer};
use super::json::{ExactText, JsonBody, Verbatim, written};
use super::pages::{Page, default_limit};
use super::types::hosts::*;
use crate::model::host::HostId;
use crate::model::people::Role;
use crate::service::core::directory::{HostState, ListQuery, Sort};
use crate::service::core::replays::Repeatable;
use crate::service::hosts::enrol::HostOptions;
use crate::service::{Core, Hosts, Login};

pub struct AdminHostsApi;

#[OpenApi(tag = "Tag::AdminHosts", prefix_path = "/admin/hosts")]
impl AdminHostsApi {
    /// Make a host, or give a known one a new key
    ///
    /// Answers with the key and the installer command, which are shown here only. For a known name the old key and all
    /// pending installers are dead at once, and the host is bound to the next address it calls from.
    #[oai(path = "/register", method = "post", operation_id = "registerHost")]
    async fn register(
        &self,
        core: Area<'_, Core>,
        hosts: Area<'_, Hosts>,
        admin: Admin,
        /// A repeated request with the same key is given the first answer, for a day, and is not done again.
        #[oai(name = "Idempotency-Key")]
        key: Header<Option<String>>,
        body: JsonBody<RegisterRequest>,
    ) -> Answer<Registration> {
        let asked = written(&body.0)?;
        let request = Repeatable { key: key.0.as_deref(), by: &admin.0, operation: "registerHost", body: &asked };
        let RegisterRequest { fqdn, secure, expires_at, allow_short_name } = body.0;
        let secure = secure.map(SecureFlag::value).transpose()?.flatten();
        let options = HostOptions { secure, expires_at, allow_short_name: allow_short_name.unwrap_or_default() };
        let (hosts, by) = (hosts.share(), admin.0.clone());
        let register = async move { Ok(Registration::from(hosts.register(&fqdn, options, &by).await?)) };
        ok(core.share().once(request, register).await?)
    }

    /// Hosts, page by page
    ///
    /// Hosts with equal keys stand in the order of their names. A page begins behind the host that the page before ended
    /// with, also if that host has changed or was removed since. They are sorted by what is known of them some seconds ago.
    #[allow(clippy::too_many_arguments)] // One for each parameter of the operation.
    #[oai(path = "/", method = "get", operation_id = "listHosts")]
    async fn list(
        &self,
        core: Area<'_, Core>,
        hosts: Area<'_, Hosts>,
        _viewer: Viewer,
        cursor: Query<Option<String>>,
        /// At most this many entries.
        #[oai(default = "default_limit", validator(minimum(value = "1"), maximum(value = "1000")))]
        limit: Query<u32>,
        /// By the name if it is left out.
        sort: Query<Option<HostSort>>,
        /// `asc` if it is left out.
        order: Query<Option<SortOrder>>,
        /// Part of the name, the address or the client version, in capitals or not.
        search: Query<Option<String>>,
        state: Query<Option<HostStateFilter>>,
    ) -> Answer<AdminHostList> {
        let query = ListQuery {
            limit: limit.0 as usize,
            offset: 0,
            after: cursor.0.as_deref().map(read_mark).transpose()?,
            sort: sort.0.map(Sort::from).unwrap_or_default(),
            descending: matches!(order.0, Some(SortOrder::Desc)),
            search: search.0,
            state: state.0.map(HostState::from),
        };
        ok(AdminHostList::of(hosts.list_hosts(query).await?, core.now()))
    }

    /// One host
    ///
    /// With what it did, as the node that is asked knows it.
    #[oai(path = "/:id", method = "get", operation_id = "getHost")]
    async fn show(&self, hosts: Area<'_, Hosts>, _viewer: Viewer, id: Path<u64>) -> Answer<AdminHostAnswer> {
        ok(AdminHostAnswer { host: hosts.host(HostId(id.0)).await?.into() })
    }

    /// Which login a host has, as far as it told
    ///
    /// With the canonical login beside it.
    #[oai(path = "/:id/auth", method = "get", operation_id = "getHostAuth")]
    async fn auth(
        &self,
        core: Area<'_, Core>,
        hosts: Area<'_, Hosts>,
        login: Area<'_, Login>,
        asking: Principal,
        id: Path<u64>,
        /// With the canonical document, for admins only. This is noted in the audit log.
        include_body: Query<Option<Flag>>,
    ) -> Answer<HostAuth> {
        let reveal = include_body.0.is_some_and(Flag::is_set);
        asking.needs(if reveal { Role::Admin } else { Role::Viewer })?;
        let view = hosts.host(HostId(id.0)).await?;
        let canonical = if reveal { login.reveal_canonical(&asking.by).await? } else { core.canonical() };
        let text = canonical.as_ref().filter(|_| reveal).map(|canonical| Arc::clone(&canonical.text));
        let host = AdminHost::from(view);
        ok(HostAuth {
            api_calls: host.host.api_calls,
            canonical_last_refresh: canonical.as_ref().map(|canonical| canonical.summary.last_refresh.clone()),
            canonical_digest: canonical.map(|canonical| canonical.summary.digest.to_string()),
            recent_digests: host.recent_digests.clone(),
            auth_text: text.clone().map(ExactText::from),
            auth: text.map(Verbatim::from),
            host,
        })
    }

    /// Remove a host
    ///
    /// Its key and its pending installers are refused from here on. Within a day it can be restored.
    #[oai(path = "/:id", method = "delete", operation_id = "removeHost")]
    async fn remove(&self, hosts: Area<'_, Hosts>, admin: Admin, id: Path<u64>) -> Answer<Removed> {
        let host = hosts.remove(HostId(id.0), &admin.0).await?;
        ok(Removed { deleted: host.fqdn.into() })
    }

    /// Let a host call from other addresses, or not
    ///
    /// While it may, a call from another address binds the host to that one.
    #[oai(path = "/:id/roaming", method = "post", operation_id = "setRoaming")]
    async fn roaming(
        &self,
        hosts: Area<'_, Hosts>,
        admin: Admin,
        id: Path<u64>,
        body: JsonBody<RoamingRequest>,
    ) -> Answer<RoamingAnswer> {
        let host = hosts.allow_roaming(HostId(id.0), body.0.allow, &admin.0).await?;
        ok(RoamingAnswer {
            host: RoamingHost {
                id: host.id.0,
                allow_roaming_ips: host.rules.allow_roaming_ips,
                fqdn: host.fqdn.into(),
            },
        })
    }

    /// Open the window of an insecure host
    ///
    /// A shared machine is served only while its window is open.
    #[oai(path = "/:id/insecure/enable", method = "post", operation_id = "openInsecureWindow")]
    async fn open_window(&self, hosts: Area<'_, Hosts>, admin: Admin, id: Path<u64>) -> Answer<WindowAnswer> {
        ok(hosts.open_window(HostId(id.0), &admin.0).await?.into())
    }

    /// Close the window of an insecure host
    ///
    /// It may still store for a short while, so that a renewed login is not lost.
    #[oai(path = "/:id/insecure/disable", method = "post", operation_id = "closeInsecureWindow")]
    async fn close_window(&self, hosts: Area<'_, Hosts>, admin: Admin, id: Path<u64>) -> Answer<WindowAnswer> {
        ok(hosts.close_window(HostId(id.0), &admin.0).await?.into())
    }

    /// Forget the addresses that a host is bound to
    ///
    /// It is bound to the next address that it calls from, one IPv4 address and one IPv6 network.
    #[oai(path = "/:id/clear", method = "post", operation_id = "clearHost")]
    async fn clear(&self, hosts: Area<'_, Hosts>, admin: Admin, id: Path<u64>) -> Answer<ClearedHost> {
        ok(ClearedHost::of(hosts.clear(HostId(id.0), &admin.0).await?))
    }

    /// Switch a host off
    ///
    /// Its key stays and is refused with `host_disabled`.
    #[oai(path = "/:id/disable", method = "post", operation_id = "disableHost")]
    async fn disable(&self, hosts: Area<'_, Hosts>, admin: Admin, id: Path<u64>) -> Answer<AdminHostAnswer> {
        let host = hosts.disable(HostId(id.0), true, &admin.0).await?;
        ok(AdminHostAnswer { host: hosts.view(host).into() })
    }

    /// Switch a host on again
    ///
    /// With the key that it had.
    #[oai(path = "/:id/enable", method = "post", operation_id = "enableHost")]
    async fn enable(&self, hosts: Area<'_, Hosts>, admin: Admin, id: Path<u64>) -> Answer<AdminHostAnswer> {
        let host = hosts.disable(HostId(id.0), false, &admin.0).await?;
        ok(AdminHostAnswer { host: hosts.view(host).into() })
    }

    /// Make a host temporary, or lasting again
    ///
    /// From `expires_at` on its key is refused with `host_expired`.
    #[oai(path = "/:id/expiry", method = "post", operation_id = "setHostExpiry")]
    async fn expiry(
        &self,
        hosts: Area<'_, Hosts>,
        admin: Admin,
        id: Path<u64>,
        body: JsonBody<ExpiryRequest>,
    ) -> Answer<AdminHostAnswer> {
        let host = hosts.set_expiry(HostId(id.0), body.0.expires_at, &admin.0).await?;
        ok(AdminHostAnswer { host: hosts.view(host).into() })
    }

    /// Say from which networks a host may call
    ///
    /// Where there are any, they stand in place of the bound address: the host is served from all of them and from nowhere
    /// else. An empty list: from the address that it is bound to, as before.
    #[oai(path = "/:id/networks", method = "post", operation_id = "setHostNetworks")]
    async fn networks(
        &self,
        hosts: Area<'_, Hosts>,
        admin: Admin,
        id: Path<u64>,
        body: JsonBody<NetworksRequest>,
    ) -> Answer<AdminHostAnswer> {
        let host = hosts.set_networks(HostId(id.0), &body.0.networks, &admin.0).await?;
        ok(AdminHostAnswer { host: hosts.view(host).into() })
    }

    /// The hosts that were removed within a day, the last one first
    ///
    /// These removals can be undone.
    #[oai(path = "/removed", method = "get", operation_id = "listRemovedHosts")]
    async fn removed(
        &self,
        hosts: Area<'_, Hosts>,
        _viewer: Viewer,
        cursor: Query<Option<String>>,
        /// At most this many entries.
        #[oai(default = "default_limit", validator(minimum(value = "1"), maximum(value = "1000")))]
        limit: Query<u32>,
    ) -> Answer<RemovedHostList> {
        let hosts = hosts.removed_hosts().await?.into_iter().filter_map(RemovedHost::of).collect();
        let Page { entries: hosts, next } =
            Page::cut(hosts, &cursor, &limit, |host: &RemovedHost| host.id.to_string())?;
        ok(RemovedHostList { hosts, next })
    }

    /// Undo a removal
    ///
    /// Within a day. The host is served again with the key, the rules and the counts that it had; installers that were
    /// outstanding stay revoked.
    #[oai(path = "/:id/restore", method = "post", operation_id = "restoreHost")]
    async fn restore(&self, hosts: Area<'_, Hosts>, admin: Admin, id: Path<u64>) -> Answer<AdminHostAnswer> {
        ok(AdminHostAnswer { host: hosts.restore(HostId(id.0), &admin.0).await?.into() })
    }
}
