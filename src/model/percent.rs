//! Percent-encodes text for URLs.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// All but the unreserved characters of RFC 3986, section 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Writes every byte as `%XX`, except unreserved characters.
pub fn encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unreserved_characters_stay() {
        let unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
        let ascii: String = (0..0x80_u8).map(char::from).collect();
        for letter in ascii.chars() {
            let wanted =
                if unreserved.contains(letter) { letter.to_string() } else { format!("%{:02X}", u32::from(letter)) };
            assert_eq!(encoded(letter.encode_utf8(&mut [0; 4])), wanted);
        }
        assert_eq!(encoded("\u{e9}\u{20ac}"), "%C3%A9%E2%82%AC");
    }
}
