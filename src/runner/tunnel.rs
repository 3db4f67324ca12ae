//! The beginning of a tunnel: held back until its server is known.
//!
//! The proxy checks the name in a CONNECT. But many names may share one address, and the client gives the name it means
//! only inside the tunnel, in the ClientHello of TLS. So rustls reads the beginning of each tunnel. Its name is
//! compared with the name in the CONNECT before any byte goes to the server:
//!
//! - TLS for a listed name must carry that name. A tunnel with another name, or without one, is cut. An encrypted name
//!   (ECH) counts as none.
//! - TLS for a listed address must carry no name.
//! - On port 443 anything but TLS is cut. On other ports a tunnel without TLS is permitted.
//! - The client must speak first, within [`HELLO_TIMEOUT`]. Its ClientHello must fit in [`MAX_HELLO_BYTES`].
//!
//! It cannot see inside TLS, for example the `Host` of HTTP. It stores nothing.

use std::io;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;

use crate::model::egress::{Destination, EgressHost};

/// Codex 0.169 was measured to send less than 2 KiB.
pub const MAX_HELLO_BYTES: usize = 16 * 1024;
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

const HTTPS_PORT: u16 = 443;
/// The first byte of a TLS record that carries a handshake.
const HANDSHAKE_RECORD: u8 = 22;

#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("TLS inside the tunnel names {0} instead")]
    OtherName(String),
    #[error("TLS inside the tunnel names no server")]
    NoName,
    #[error("the content of the tunnel is not TLS")]
    NotTls,
    #[error("the TLS inside the tunnel cannot be read: {0}")]
    Unreadable(rustls::Error),
    #[error("the ClientHello inside the tunnel does not fit in {MAX_HELLO_BYTES} bytes")]
    TooLong,
    #[error("no complete ClientHello came through the tunnel within {} s", HELLO_TIMEOUT.as_secs())]
    TooSlow,
    /// The client went away; nothing was attempted.
    #[error("the tunnel ended before it began: {0}")]
    Ended(#[from] io::Error),
}

/// Reads the client's first bytes until they may be sent to the server. Returns them, with `early` first.
pub async fn opening<Client: AsyncRead + Unpin>(
    client: &mut Client,
    asked: &Destination,
    early: Vec<u8>,
) -> Result<Vec<u8>, TunnelError> {
    opening_within(HELLO_TIMEOUT, client, asked, early).await
}

async fn opening_within<Client: AsyncRead + Unpin>(
    bound: Duration,
    client: &mut Client,
    asked: &Destination,
    early: Vec<u8>,
) -> Result<Vec<u8>, TunnelError> {
    timeout(bound, read(client, asked, early)).await.unwrap_or(Err(TunnelError::TooSlow))
}

async fn read<Client: AsyncRead + Unpin>(
    client: &mut Client,
    asked: &Destination,
    early: Vec<u8>,
) -> Result<Vec<u8>, TunnelError> {
    let mut hello = Hello::new(asked);
    let mut bytes = early;
    let mut judged = 0;
    loop {
        if hello.is_good(bytes.get(judged..).unwrap_or_default())? {
            return Ok(bytes);
        }
        judged = bytes.len();
        if judged >= MAX_HELLO_BYTES {
            return Err(TunnelError::TooLong);
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Err(TunnelError::Ended(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// The received part of a ClientHello.
struct Hello<'a> {
    asked: &'a Destination,
    acceptor: Acceptor,
    is_tls: Option<bool>,
}

impl<'a> Hello<'a> {
    fn new(asked: &'a Destination) -> Self {
        Self { asked, acceptor: Acceptor::default(), is_tls: None }
    }

    /// Takes the next piece. `true`: everything so far may be sent on. `false`: more must arrive.
    fn is_good(&mut self, piece: &[u8]) -> Result<bool, TunnelError> {
        let Some(first) = piece.first() else { return Ok(false) };
        let is_tls = *self.is_tls.get_or_insert(*first == HANDSHAKE_RECORD);
        if !is_tls {
            return if self.asked.port == HTTPS_PORT { Err(TunnelError::NotTls) } else { Ok(true) };
        }
        let mut left = piece;
        while !left.is_empty() {
            self.acceptor.read_tls(&mut left)?;
            if let Some(accepted) = self.acceptor.accept().map_err(|(error, _)| TunnelError::Unreadable(error))? {
                return self.compare(accepted.client_hello().server_name()).map(|()| true);
            }
        }
        Ok(false)
    }

    fn compare(&self, named: Option<&str>) -> Result<(), TunnelError> {
        match (&self.asked.host, named) {
            (EgressHost::Name(asked), Some(named)) if asked.eq_ignore_ascii_case(named) => Ok(()),
            (EgressHost::Address(_), None) => Ok(()),
            (_, Some(other)) => Err(TunnelError::OtherName(other.to_owned())),
            (EgressHost::Name(_), None) => Err(TunnelError::NoName),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::pki::tls::provider;

    /// The ClientHello of a real client for this server.
    fn hello(server: &str) -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(provider());
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
        let mut client = ClientConnection::new(config, ServerName::try_from(server.to_owned()).unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same ClientHello in records of `size` bytes.
    fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
        let (head, message) = hello.split_at(5);
        let record = |part: &[u8]| [&head[..3], &u16::try_from(part.len()).unwrap().to_be_bytes(), part].concat();
        message.chunks(size).flat_map(record).collect()
    }

    async fn judge(asked: &str, sent: &[u8]) -> Result<Vec<u8>, TunnelError> {
        let mut sent = sent;
        opening(&mut sent, &asked.parse().unwrap(), Vec::new()).await
    }

    async fn refusal(asked: &str, sent: &[u8]) -> String {
        judge(asked, sent).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn the_name_that_was_asked_for_is_let_through_and_every_byte_of_it() {
        let hello = hello("chatgpt.com");
        let more = [&hello[..], b"and what came after it"].concat();
        for asked in ["chatgpt.com:443", "ChatGPT.com.:443", "chatgpt.com:8443"] {
            // Later bytes are copied by the tunnel itself.
            let opened = judge(asked, &more).await.unwrap();
            assert!(more.starts_with(&opened) && opened.len() >= hello.len(), "{asked}: {} bytes", opened.len());
        }
        // Bytes that came with the CONNECT go first.
        let asked = "chatgpt.com:443".parse().unwrap();
        let opened = opening(&mut &hello[100..], &asked, hello[..100].to_vec()).await.unwrap();
        assert_eq!(opened, hello);
    }

    #[tokio::test]
    async fn another_name_is_cut_on_every_port() {
        for asked in ["chatgpt.com:443", "chatgpt.com:8443", "127.0.0.1:443", "[2001:db8::1]:443", "www.evil.test:443"]
        {
            assert_eq!(refusal(asked, &hello("evil.test")).await, "TLS inside the tunnel names evil.test instead");
        }
        assert!(refusal("chatgpt.com:443", &hello("www.chatgpt.com")).await.contains("names www.chatgpt.com"));
    }

    #[tokio::test]
    async fn no_name_is_good_for_an_address_only() {
        // A client of an address sends no name.
        let nameless = hello("192.0.2.1");
        assert_eq!(judge("192.0.2.1:443", &nameless).await.unwrap(), nameless);
        assert_eq!(refusal("chatgpt.com:443", &nameless).await, "TLS inside the tunnel names no server");
    }

    #[tokio::test]
    async fn what_is_no_tls_is_cut_on_the_port_of_tls() {
        let plain = b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n";
        assert!(matches!(judge("chatgpt.com:443", plain).await, Err(TunnelError::NotTls)));
        assert_eq!(judge("chatgpt.com:8080", plain).await.unwrap(), plain);
        // Only the beginning looks like TLS.
        for nonsense in [&b"\x16\x03\x01\x00\x05hello"[..], b"\x16GET / HTTP/1.1\r\n", b"\x16\x03\x01\xff\xff"] {
            let refused = judge("chatgpt.com:8080", nonsense).await;
            assert!(matches!(refused, Err(TunnelError::Unreadable(_) | TunnelError::Ended(_))), "{refused:?}");
        }
    }

    #[tokio::test]
    async fn in_pieces_and_in_records_of_every_size_it_is_judged_the_same() {
        let (good, bad) = (hello("chatgpt.com"), hello("evil.test"));
        for size in [1, 2, 3, 7, 100, 1000] {
            for (sent, is_good) in [(in_records(&good, size), true), (in_records(&bad, size), false)] {
                if sent.len() > MAX_HELLO_BYTES {
                    continue;
                }
                let (mut near, mut far) = tokio::io::duplex(size);
                let writer = sent.clone();
                tokio::spawn(async move { far.write_all(&writer).await });
                let asked = "chatgpt.com:443".parse().unwrap();
                let opened = opening(&mut near, &asked, Vec::new()).await;
                assert_eq!(opened.is_ok(), is_good, "{size}: {opened:?}");
                if let Ok(opened) = opened {
                    assert!(sent.starts_with(&opened) && opened.len() >= good.len(), "{size}");
                }
            }
        }
    }

    #[tokio::test]
    async fn what_is_too_long_or_too_slow_is_cut() {
        // One message of 64 KiB, in valid records.
        let endless: Vec<u8> = [b"\x01\x00\xff\xff".to_vec(), vec![0; 65_535]].concat();
        let endless = in_records(&[b"\x16\x03\x01\0\0".to_vec(), endless].concat(), 1000);
        assert!(matches!(judge("chatgpt.com:443", &endless).await, Err(TunnelError::TooLong)));
        for port in [443, 8080] {
            let (mut near, mut far) = tokio::io::duplex(64);
            let asked = format!("chatgpt.com:{port}").parse().unwrap();
            // Part of a record or nothing, and then silence.
            if port == 443 {
                far.write_all(&hello("chatgpt.com")[..50]).await.unwrap();
            }
            // However long the time is: nothing else comes.
            let opened = opening_within(Duration::from_millis(20), &mut near, &asked, Vec::new()).await;
            assert!(matches!(opened, Err(TunnelError::TooSlow)), "{opened:?}");
        }
    }

    #[tokio::test]
    async fn a_client_that_goes_away_has_tried_nothing() {
        for cut in [0, 1, 5, 50] {
            let gone = judge("chatgpt.com:443", &hello("chatgpt.com")[..cut]).await;
            assert!(matches!(gone, Err(TunnelError::Ended(_))), "{cut}: {gone:?}");
        }
    }

    proptest::proptest! {
        /// Any bytes are judged without a panic; only the right name passes on port 443.
        #[test]
        fn any_bytes_after_the_first_are_judged(noise in proptest::collection::vec(proptest::num::u8::ANY, 0..200), at in 0_usize..250) {
            let asked = "chatgpt.com:443".parse().unwrap();
            let mut damaged = hello("evil.test");
            let end = damaged.len().min(at + noise.len());
            let at = at.min(end);
            damaged[at..end].copy_from_slice(&noise[..end - at]);
            proptest::prop_assert!(!matches!(Hello::new(&asked).is_good(&damaged), Ok(true)));
            let _ = Hello::new(&asked).is_good(&[&[HANDSHAKE_RECORD][..], &noise].concat());
        }
    }
}
