//! The overview of the fleet.

use std::collections::HashMap;

use time::OffsetDateTime;

use crate::model::audit::AuditFilter;
use crate::model::instant::Instant;
use crate::service::core::health::Degraded;
use crate::service::{Result, ServiceError, Status};

pub struct Overview {
    pub hosts: usize,
    /// The average age of the logins that hosts have in hand, in days; `None`: no host is known to have one.
    pub average_age_days: Option<f64>,
    /// When the newest entry of the audit log was written; `None` also while the log cannot be read.
    pub noted_at: Option<OffsetDateTime>,
    pub degraded: Option<Degraded>,
}

impl Status {
    pub async fn overview(&self) -> Result<Overview> {
        let now = self.core.platform.now();
        let noted_at = self.newest_entry().await?;
        let (hosts, average_age_days) = self
            .core
            .directory
            .look(move |table| (table.host_count(), average_age(&table.last_refreshes(), now)))
            .await?;
        Ok(Overview { hosts, average_age_days, noted_at, degraded: self.core.health.degraded() })
    }

    async fn newest_entry(&self) -> Result<Option<OffsetDateTime>> {
        if self.core.health.away().is_some_and(|away| !away.unwritten) {
            return Ok(None);
        }
        match self.core.health.note_reached(self.core.records.audit_list(&AuditFilter::default(), 1).await) {
            Ok(newest) => Ok(newest.first().map(|entry| entry.note.at)),
            // The overview must work while the store is in trouble.
            Err(ServiceError::RecordsAway { .. } | ServiceError::StoreFailed { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The average age in days. `hosts`: how many hosts have each `last_refresh`.
fn average_age(hosts: &HashMap<&str, usize>, now: OffsetDateTime) -> Option<f64> {
    const DAY: f64 = 86_400.0;
    let now = now.unix_timestamp_nanos() as f64 / 1e9;
    let ages = hosts.iter().filter_map(|(last_refresh, hosts)| {
        let refreshed = Instant::parse(last_refresh).ok()?.unix_seconds();
        Some(((now - refreshed) / DAY * *hosts as f64, *hosts))
    });
    let (days, hosts) = ages.fold((0.0, 0), |(days, all), (age, hosts)| (days + age, all + hosts));
    (hosts > 0).then(|| days / hosts as f64)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn the_average_counts_each_host() {
        let now = datetime!(2026-11-21 12:00 UTC);
        let of = |hosts: &[(&'static str, usize)]| average_age(&hosts.iter().copied().collect(), now);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("2026-11-20T12:00:00Z", 3), ("2026-11-16T14:00:00+02:00", 1)]), Some(2.0));
        assert_eq!(of(&[("2026-11-22T12:00:00Z", 1)]), Some(-1.0), "a clock that was set back");
    }
}
