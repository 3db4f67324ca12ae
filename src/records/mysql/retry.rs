//! Runs a change or a read on a connection, within the configured time. A transaction that conflicts with another one
//! is retried from the beginning, up to [`MAX_ATTEMPTS`](super::MAX_ATTEMPTS) times.
//!
//! These are macros because each body borrows the connection that the macro leases.

/// Runs `$body`, in which `$change` is a `&mut Change`, as one transaction. With `begin_anyway` it runs even at a
/// standstill and during a fill.
macro_rules! change {
    ($self:ident, |$change:ident| $body:expr) => {
        change!($self, begin, |$change| $body)
    };
    ($self:ident, $begin:ident, |$change:ident| $body:expr) => {{
        let deadline = $self.connections.deadline();
        let _turn = $self.turn(deadline).await?;
        transaction!($self, deadline, |connection| {
            let mut begun = $crate::records::mysql::transaction::Change::$begin(connection).await?;
            let outcome: $crate::records::mysql::connections::Outcome<_> = async {
                let $change = &mut begun;
                $body
            }
            .await;
            begun.end(outcome).await
        })
    }};
}

/// Runs `$body`, which is one transaction on `$connection`.
macro_rules! transaction {
    ($self:ident, $deadline:expr, |$connection:ident| $body:expr) => {{
        let (deadline, mut attempt) = ($deadline, 0);
        loop {
            attempt += 1;
            let mut lease = $self.lease(deadline).await?;
            let transaction = async {
                let $connection = lease.connection()?;
                $body
            };
            let outcome = deadline.bound(transaction).await;
            match lease.end(outcome) {
                Err($crate::records::mysql::connections::Problem::Conflict(_))
                    if attempt < $crate::records::mysql::MAX_ATTEMPTS && !deadline.is_over() =>
                {
                    $self.back_off(attempt).await
                }
                outcome => break $self.fitted(outcome),
            }
        }
    }};
}

/// Runs `$body` with a connection.
macro_rules! read {
    ($self:ident, |$connection:ident| $body:expr) => {{
        let deadline = $self.connections.deadline();
        let mut lease = $self.lease(deadline).await?;
        let reading = async {
            let $connection = lease.connection()?;
            $body
        };
        let outcome = deadline.bound(reading).await;
        lease.end(outcome).map_err($crate::records::RecordsError::from)
    }};
}
