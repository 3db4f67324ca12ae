//! The quoting of `printf %q` in bash, so that the bash `cdx` and this one know each other's state.

/// The text as bash quotes it in the C locale.
pub fn shell_quoted(text: &[u8]) -> Vec<u8> {
    if text.is_empty() {
        return b"''".to_vec();
    }
    if text.iter().any(|byte| !(b' '..=b'~').contains(byte)) {
        return ansi_quoted(text);
    }
    let mut quoted = Vec::with_capacity(text.len());
    for (place, byte) in text.iter().enumerate() {
        let at_start = match byte {
            b'#' => place == 0,
            b'~' => place == 0 || matches!(text[place - 1], b':' | b'='),
            _ => false,
        };
        if at_start || b" !\"$&'()*,;<>?[\\]^`{|}".contains(byte) {
            quoted.push(b'\\');
        }
        quoted.push(*byte);
    }
    quoted
}

/// `$'…'`: what has no name is octal.
fn ansi_quoted(text: &[u8]) -> Vec<u8> {
    let mut quoted = b"$'".to_vec();
    for byte in text {
        let name = match byte {
            0x1b => b'E',
            0x07 => b'a',
            0x0b => b'v',
            0x08 => b'b',
            0x0c => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            b'\\' | b'\'' => *byte,
            b' '..=b'~' => {
                quoted.push(*byte);
                continue;
            }
            other => {
                quoted.extend_from_slice(format!("\\{other:03o}").as_bytes());
                continue;
            }
        };
        quoted.extend_from_slice(&[b'\\', name]);
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn bash_quotes_the_same() {
        let mut texts: Vec<Vec<u8>> = (1..=255).map(|byte| vec![byte]).collect();
        texts.extend((1..=255).map(|byte| vec![b'a', byte, b'=', byte, b':', byte, b'/', byte, b'~']));
        texts.extend(
            ["https://a.test:8443", "/home/it's \"$(touch x)\" `x`", "/ü\u{1f34c}", ""]
                .map(|text| text.as_bytes().to_vec()),
        );
        let mut bash = Command::new("bash");
        bash.env("LC_ALL", "C").args(["-c", "printf '%q\\n' \"$@\"", "bash"]);
        bash.args(texts.iter().map(|text| OsStr::from_bytes(text)));
        let theirs = bash.output().unwrap().stdout;
        for (text, line) in texts.iter().zip(theirs.split(|byte| *byte == b'\n')) {
            let ours = shell_quoted(text);
            assert_eq!(String::from_utf8_lossy(&ours), String::from_utf8_lossy(line), "{text:?}");
        }
    }
}
