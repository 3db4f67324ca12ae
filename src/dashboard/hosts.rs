//! `/`: shows the canonical login and the list of hosts.

use askama::Template;
use poem::http::StatusCode;
use poem::web::Query;
use poem::{Response, handler};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::context::{PageContext, PageError};
use super::format::When;
use super::layout::{Layout, show};
use super::runner::{self, Proof};
use crate::model::host::{HostRules, NotServed};
use crate::records::{CanonicalSource, CanonicalSummary};
use crate::service::Areas;
use crate::service::core::directory::{ListQuery, ListedHost, Sort};
use crate::service::hosts::enrol::HostView;

const HOSTS_PER_PAGE: usize = 50;

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct HostsQuery {
    told: String,
    /// Part of a name or of an address.
    q: String,
    /// `seen`: most recently seen first. Anything else: by name.
    sort: String,
    page: String,
}

#[derive(Template)]
#[template(path = "hosts.html")]
struct HostsPage {
    layout: Layout,
    login: Option<LoginCard>,
    hosts: Vec<HostRow>,
    /// Number of hosts that match the search.
    found: usize,
    q: String,
    by_seen: bool,
    page: usize,
    pages: usize,
}

pub struct LoginCard {
    pub version: u64,
    pub digest: String,
    pub last_refresh: String,
    pub age: String,
    pub source: String,
    pub stored: When,
    /// `None`: probes are switched off.
    pub proof: Option<Proof>,
}

/// A host, formatted for people.
pub struct HostRow {
    pub id: u64,
    pub name: String,
    pub state: StateChoice,
    pub address: Option<String>,
    /// The bound address of the other IP family.
    pub other_address: Option<String>,
    pub roaming: bool,
    pub secure: bool,
    pub seen: Option<When>,
    pub client: Option<String>,
    pub wrapper: Option<String>,
    pub calls: u64,
}

/// Whether a call of the host would be served. `class` is the CSS class.
pub struct StateChoice {
    pub words: String,
    pub class: &'static str,
}

#[handler]
pub async fn page(context: PageContext, Query(wanted): Query<HostsQuery>) -> Result<Response, PageError> {
    let now = context.now();
    let asked: usize = wanted.page.parse().unwrap_or(1).max(1);
    let q = wanted.q.trim().to_lowercase();
    let by_seen = wanted.sort == "seen";
    let query = ListQuery {
        limit: HOSTS_PER_PAGE,
        after: None,
        offset: (asked - 1).saturating_mul(HOSTS_PER_PAGE),
        sort: if by_seen { Sort::LastSeen } else { Sort::Fqdn },
        descending: by_seen,
        search: (!q.is_empty()).then(|| q.clone()),
        state: None,
    };
    let listed = context.areas().hosts.list_hosts(query).await?;
    let found = listed.matching;
    let page = HostsPage {
        layout: Layout::new(&context, "Hosts"),
        login: login(context.areas(), now).await,
        hosts: listed.hosts.into_iter().map(|host| HostRow::of(host, now)).collect(),
        found,
        q,
        by_seen,
        page: asked,
        pages: found.div_ceil(HOSTS_PER_PAGE).max(1),
    };
    show(StatusCode::OK, &page)
}

/// The canonical login without secrets.
pub async fn login(areas: &Areas, now: OffsetDateTime) -> Option<LoginCard> {
    let CanonicalSummary { version, digest, last_refresh, source, stored_at, .. } =
        areas.core.canonical()?.summary.clone();
    let age = OffsetDateTime::parse(&last_refresh, &Rfc3339).map(|at| When::new(at, now).distance).unwrap_or_default();
    let source = source_in_words(source);
    let proof = runner::proof(areas, now).await;
    let stored = When::new(stored_at, now);
    Some(LoginCard { version, digest: digest.to_string(), last_refresh, age, source, stored, proof })
}

/// Where a version came from.
pub fn source_in_words(source: CanonicalSource) -> String {
    match source {
        CanonicalSource::Admin { by } => format!("uploaded by an admin ({by})"),
        CanonicalSource::Override { by } => format!("uploaded by an admin ({by}), replacing a newer login"),
        CanonicalSource::Host { fqdn, .. } => format!("stored by the host {fqdn}"),
        CanonicalSource::Runner { of } => format!("refreshed by Codex while version {of} was probed"),
        CanonicalSource::Rollback { by, of } => format!("version {of}, restored by {by}"),
    }
}

impl HostRow {
    pub fn new(HostView { host, activity, .. }: HostView, now: OffsetDateTime) -> Self {
        Self::of(ListedHost::new(&host, activity), now)
    }

    fn of(ListedHost { id, fqdn, rules, activity, .. }: ListedHost, now: OffsetDateTime) -> Self {
        Self {
            id: id.0,
            state: StateChoice::new(&rules, now),
            name: fqdn.into(),
            address: rules.bound_ip.map(|ip| ip.to_string()),
            other_address: rules.bound_ip_other.map(|ip| ip.to_string()),
            roaming: rules.allow_roaming_ips,
            secure: rules.secure,
            seen: activity.last_seen.map(|seen| When::new(seen, now)),
            client: activity.client_version,
            wrapper: activity.wrapper_version,
            calls: activity.api_calls,
        }
    }
}

impl StateChoice {
    fn new(rules: &HostRules, now: OffsetDateTime) -> Self {
        match rules.served(now, time::Duration::MAX) {
            Err(NotServed::Disabled) if rules.disabled_with_user => {
                return Self { words: "Disabled with its user, refused".into(), class: "closed" };
            }
            Err(NotServed::Disabled) => return Self { words: "Disabled, refused".into(), class: "closed" },
            Err(NotServed::Expired) => return Self { words: "Expired, refused".into(), class: "closed" },
            Ok(()) | Err(NotServed::WindowClosed) => {}
        }
        let open_until = [rules.insecure_enabled_until, rules.insecure_grace_until].into_iter().flatten().max();
        match open_until.filter(|until| now < *until) {
            _ if rules.secure && rules.bound_ip.is_none() && rules.allowed_networks.is_empty() => {
                Self { words: "Waiting for its first call".into(), class: "waiting" }
            }
            _ if rules.secure => Self { words: "Served".into(), class: "good" },
            Some(until) => {
                Self { words: format!("Shared: window open until {}", When::new(until, now).shown), class: "waiting" }
            }
            None => Self { words: "Shared: window closed, refused".into(), class: "closed" },
        }
    }
}
