//! The PROXY protocol, versions 1 and 2: a header in which a load balancer names the client of a connection. Exactly
//! the header is read from the socket; the bytes after it are left for TLS.

use std::io;
use std::net::SocketAddr;

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::model::forwarded::TrustedProxies;

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Including the end of the line; the protocol's own limit.
const V1_MAX_BYTES: usize = 107;
/// The part after the first 16 bytes of a version 2 header. Its addresses take at most 36 bytes; the rest is ignored.
const V2_MAX_BYTES: usize = 2048;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    #[error("it does not come from a trusted proxy")]
    NotTrusted,
    #[error("it does not begin with a PROXY header")]
    Missing,
    #[error("its PROXY header cannot be read")]
    Malformed,
    #[error("its PROXY header is too long")]
    TooLong,
    #[error("its PROXY header is not about a TCP connection")]
    NotTcp,
    #[error("it ended within its PROXY header: {0}")]
    Io(#[from] io::Error),
}

/// Returns the client's address from the header of a trusted proxy, or `peer` for the proxy's own connection.
pub(super) async fn read(
    stream: &mut TcpStream,
    peer: SocketAddr,
    trust: &TrustedProxies,
) -> Result<SocketAddr, ProxyError> {
    if !trust.trusts(peer.ip()) {
        return Err(ProxyError::NotTrusted);
    }
    // Every header is at least this long.
    let mut header = vec![0; V2_SIGNATURE.len()];
    stream.read_exact(&mut header).await?;
    if header == V2_SIGNATURE {
        read_v2(stream, &mut header).await?;
    } else if header.starts_with(b"PROXY ") {
        read_v1(stream, &mut header).await?;
    } else {
        return Err(ProxyError::Missing);
    }
    Ok(parse(&header)?.unwrap_or(peer))
}

async fn read_v2(stream: &mut TcpStream, header: &mut Vec<u8>) -> Result<(), ProxyError> {
    let mut rest = [0; 4];
    stream.read_exact(&mut rest).await?;
    header.extend(rest);
    let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
    if length > V2_MAX_BYTES {
        return Err(ProxyError::TooLong);
    }
    let begin = header.len();
    header.resize(begin + length, 0);
    stream.read_exact(&mut header[begin..]).await?;
    Ok(())
}

async fn read_v1(stream: &mut TcpStream, header: &mut Vec<u8>) -> Result<(), ProxyError> {
    let mut seen = [0; V1_MAX_BYTES];
    while header.last() != Some(&b'\n') {
        let room = V1_MAX_BYTES - header.len();
        if room == 0 {
            return Err(ProxyError::TooLong);
        }
        // Peek first: the bytes after the line must stay in the socket.
        let count = stream.peek(&mut seen[..room]).await?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let take = seen[..count].iter().position(|byte| *byte == b'\n').map_or(count, |at| at + 1);
        stream.read_exact(&mut seen[..take]).await?;
        header.extend(&seen[..take]);
    }
    Ok(())
}

/// The address in a complete header. `None`: the proxy's own connection (`LOCAL`, `UNKNOWN`).
pub(crate) fn parse(header: &[u8]) -> Result<Option<SocketAddr>, ProxyError> {
    let config = ParseConfig { include_tlvs: false, allow_v1: true, allow_v2: true };
    let (parsed, length) = ProxyHeader::parse(header, config).map_err(|_| ProxyError::Malformed)?;
    // The parser is less strict than the protocol here.
    if length != header.len() || header.starts_with(b"PROXY ") && !is_strict_v1(header) {
        return Err(ProxyError::Malformed);
    }
    // Version 2, command PROXY: unspecified, or TCP over either family; else UDP or a Unix socket.
    if header.starts_with(V2_SIGNATURE) && header[12] == 0x21 && !matches!(header[13], 0x00 | 0x11 | 0x21) {
        return Err(ProxyError::NotTcp);
    }
    Ok(parsed.proxied_address().map(|address| address.source))
}

fn is_strict_v1(header: &[u8]) -> bool {
    let unknown = b"PROXY UNKNOWN";
    !header.contains(&b'+') && (!header.starts_with(unknown) || matches!(header.get(unknown.len()), Some(b' ' | b'\r')))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    fn v2(command: u8, protocol: u8, body: &[u8]) -> Vec<u8> {
        let mut header = V2_SIGNATURE.to_vec();
        header.extend([command, protocol]);
        header.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        header.extend(body);
        header
    }

    const V4_BODY: [u8; 12] = [203, 0, 113, 9, 10, 0, 0, 1, 0x12, 0x67, 0x20, 0xfb];

    /// The result of reading `bytes` on the server side, and the rest that is left for TLS.
    async fn receive(bytes: &[u8], trusted: &str) -> (Result<SocketAddr, ProxyError>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut stream, peer) = listener.accept().await.unwrap();
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let trust = TrustedProxies::new(vec![trusted.parse().unwrap()], None);
        let answer = read(&mut stream, peer, &trust).await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        (answer.map(|address| if address == peer { SocketAddr::from(([0, 0, 0, 0], 0)) } else { address }), rest)
    }

    #[tokio::test]
    async fn the_header_names_the_caller_and_what_follows_is_left_alone() {
        let mut v6 = vec![0x20, 0x01, 0x0d, 0xb8];
        v6.extend([0; 11]);
        v6.push(1);
        v6.extend([0; 16]);
        v6.extend([0x12, 0x67, 0x20, 0xfb, 4, 0, 3, 1, 2, 3]);
        let the_proxy_itself = "0.0.0.0:0";
        for (header, wanted) in [
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 8443\r\n".to_vec(), "203.0.113.9:4711"),
            (b"PROXY TCP6 2001:db8::1 fd00::1 4711 8443\r\n".to_vec(), "[2001:db8::1]:4711"),
            (b"PROXY UNKNOWN\r\n".to_vec(), the_proxy_itself),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), the_proxy_itself),
            (v2(0x21, 0x11, &V4_BODY), "203.0.113.9:4711"),
            (v2(0x21, 0x21, &v6), "[2001:db8::1]:4711"),
            (v2(0x20, 0x11, &V4_BODY), the_proxy_itself),
            (v2(0x20, 0x00, &[]), the_proxy_itself),
            (v2(0x21, 0x00, &[]), the_proxy_itself),
        ] {
            // TLS's first bytes, and a line that must not be read as a header.
            let mut bytes = header.clone();
            bytes.extend(b"\x16\x03\x01\nGET");
            let (answer, rest) = receive(&bytes, "127.0.0.0/8").await;
            assert_eq!(answer.unwrap(), wanted.parse().unwrap(), "{}", String::from_utf8_lossy(&header));
            assert_eq!(rest, b"\x16\x03\x01\nGET");
        }
    }

    #[tokio::test]
    async fn whatever_else_comes_first_is_refused() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_MAX_BYTES));
        for bytes in [
            b"".to_vec(),
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03xxxxxxxxxxx".to_vec(),
            b"PROXY TCP4 203.0.113.9".to_vec(),
            b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 8443\n".to_vec(),
            b"PROXY TCP4 2001:db8::1 10.0.0.1 4711 8443\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.9 10.0.0.1 70000 8443\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.9 10.0.0.1 +4711 8443\r\n".to_vec(),
            b"PROXY TCP4  203.0.113.9 10.0.0.1 4711 8443\r\n".to_vec(),
            b"PROXY UDP4 203.0.113.9 10.0.0.1 4711 8443\r\n".to_vec(),
            b"PROXY UNKNOWNx\r\n".to_vec(),
            b"proxy tcp4 203.0.113.9 10.0.0.1 4711 8443\r\n".to_vec(),
            long.into_bytes(),
            v2(0x11, 0x11, &V4_BODY),
            v2(0x22, 0x11, &V4_BODY),
            v2(0x21, 0x11, &V4_BODY[..11]),
            v2(0x21, 0x21, &V4_BODY),
            v2(0x21, 0x12, &V4_BODY),
            v2(0x21, 0x31, &[0; 216]),
            v2(0x21, 0x51, &V4_BODY),
            v2(0x21, 0x11, &[0; V2_MAX_BYTES + 1]),
            v2(0x21, 0x11, &V4_BODY)[..20].to_vec(),
        ] {
            let (answer, _) = receive(&bytes, "127.0.0.0/8").await;
            assert!(answer.is_err(), "{answer:?} of {:?}", String::from_utf8_lossy(&bytes));
        }
        let (answer, _) = receive(b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 8443\r\n", "10.0.0.0/8").await;
        assert!(matches!(answer, Err(ProxyError::NotTrusted)), "{answer:?}");
    }

    /// Where the header at the start of `bytes` ends, by the protocol's specification.
    fn header_end(bytes: &[u8]) -> Option<usize> {
        let end = if bytes.starts_with(V2_SIGNATURE) {
            let length = usize::from(u16::from_be_bytes([*bytes.get(14)?, *bytes.get(15)?]));
            Some(16 + length).filter(|_| length <= V2_MAX_BYTES)?
        } else {
            let end = 1 + bytes.iter().position(|byte| *byte == b'\n')?;
            Some(end).filter(|end| bytes.starts_with(b"PROXY ") && *end <= V1_MAX_BYTES)?
        };
        (end <= bytes.len()).then_some(end)
    }

    /// The fuzz target parses whole headers. Here they come from a socket, followed by more bytes.
    #[tokio::test]
    async fn every_kept_input_is_cut_from_the_stream_where_its_header_ends() {
        let mut headers = 0;
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/addresses")).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            let (answer, rest) = receive(&bytes, "127.0.0.0/8").await;
            let end = header_end(&bytes);
            let expected = end.and_then(|end| parse(&bytes[..end]).ok());
            let the_proxy_itself = SocketAddr::from(([0, 0, 0, 0], 0));
            assert_eq!(
                answer.ok(),
                expected.map(|named| named.unwrap_or(the_proxy_itself)),
                "{}",
                bytes.escape_ascii()
            );
            if let (Some(end), true) = (end, expected.is_some()) {
                assert_eq!(rest, &bytes[end..]);
                headers += 1;
            }
        }
        assert!(headers >= 5, "{headers}");
    }

    proptest! {
        #[test]
        fn no_bytes_at_all_do_harm(version in 0..3, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut header = match version {
                0 => b"PROXY ".to_vec(),
                1 => V2_SIGNATURE.to_vec(),
                _ => Vec::new(),
            };
            header.extend(bytes);
            let _ = parse(&header);
        }
    }
}
