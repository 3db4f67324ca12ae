//! A JSON reader and writer that keep the order of members and the spelling of numbers, because digests depend on them.
//!
//! Reading takes one pass over any text. This module handles brackets, commas and colons. `serde_json` parses the
//! strings and numbers, so both accept the same ones. Refused in addition to what `serde_json` refuses: duplicate
//! members, at any depth and after unescaping, and nesting deeper than [`MAX_DEPTH`].

use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use super::DocumentError;

/// How deep arrays and objects may be nested in a document.
pub(super) const MAX_DEPTH: usize = 64;

pub(super) enum Node<'a> {
    Null,
    Bool(bool),
    /// In its original spelling.
    Number(&'a str),
    /// Decoded.
    String(Zeroizing<String>),
    Array(Vec<Node<'a>>),
    Object(Members<'a>),
}

/// The members of an object, in their original order. Names are unique.
pub(super) struct Members<'a>(pub(super) Vec<Member<'a>>);

pub(super) struct Member<'a> {
    pub(super) name: String,
    pub(super) value: Node<'a>,
    /// The value's original text; empty for a value made by the daemon.
    pub(super) raw: &'a str,
}

impl<'a> Node<'a> {
    pub(super) fn string(text: impl Into<String>) -> Self {
        Self::String(Zeroizing::new(text.into()))
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }
}

impl<'a> Members<'a> {
    pub(super) fn get(&self, name: &str) -> Option<&Node<'a>> {
        self.0.iter().find(|member| member.name == name).map(|member| &member.value)
    }

    /// Whether the member exists and is not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !matches!(value, Node::Null))
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Node<'a>> {
        self.0.iter_mut().find(|member| member.name == name).map(|member| &mut member.value)
    }

    /// Replaces the value of an existing member, or appends the member.
    pub(super) fn set(&mut self, name: &str, value: Node<'a>) {
        let made = Member { name: name.to_owned(), value, raw: "" };
        match self.0.iter_mut().find(|member| member.name == name) {
            Some(member) => *member = made,
            None => self.0.push(made),
        }
    }
}

/// Reads one document.
pub(super) fn read(text: &str) -> Result<Node<'_>, DocumentError> {
    read_nested(text, MAX_DEPTH)
}

/// Reads one text of at most `depth` levels.
pub(super) fn read_nested(text: &str, depth: usize) -> Result<Node<'_>, DocumentError> {
    let mut reader = Reader { text, at: 0, depth };
    reader.skip_space();
    let node = reader.value()?;
    reader.skip_space();
    match reader.peek() {
        None => Ok(node),
        Some(_) => Err(reader.wrong("something follows the end of the JSON text")),
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// How many levels may still be entered.
    depth: usize,
}

impl<'a> Reader<'a> {
    fn value(&mut self) -> Result<Node<'a>, DocumentError> {
        match self.peek() {
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(b'"') => self.string().map(Node::string),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.literal(),
        }
    }

    fn nested(&mut self, read: fn(&mut Self) -> Result<Node<'a>, DocumentError>) -> Result<Node<'a>, DocumentError> {
        if self.depth == 0 {
            return Err(self.wrong("nested too deeply"));
        }
        self.depth -= 1;
        self.at += 1;
        let node = read(self)?;
        self.depth += 1;
        Ok(node)
    }

    fn object(&mut self) -> Result<Node<'a>, DocumentError> {
        let mut members = Vec::new();
        self.skip_space();
        if self.take(b'}') {
            return Ok(Node::Object(Members(members)));
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.wrong("expected a member's name"));
            }
            let name = self.string()?;
            self.skip_space();
            if !self.take(b':') {
                return Err(self.wrong("expected a colon"));
            }
            self.skip_space();
            let from = self.at;
            let value = self.value()?;
            members.push(Member { name, value, raw: self.since(from) });
            if self.ends_with(b'}')? {
                break;
            }
        }
        if has_duplicate(&members) {
            return Err(self.wrong("a member name appears twice in the object ending"));
        }
        Ok(Node::Object(Members(members)))
    }

    fn array(&mut self) -> Result<Node<'a>, DocumentError> {
        let mut elements = Vec::new();
        self.skip_space();
        if self.take(b']') {
            return Ok(Node::Array(elements));
        }
        loop {
            elements.push(self.value()?);
            if self.ends_with(b']')? {
                return Ok(Node::Array(elements));
            }
        }
    }

    /// Called after an element. `true`: the container ended. `false`: a comma and space were skipped, and the next
    /// element follows.
    fn ends_with(&mut self, close: u8) -> Result<bool, DocumentError> {
        self.skip_space();
        if self.take(close) {
            return Ok(true);
        }
        if !self.take(b',') {
            return Err(self.wrong("expected a comma or the closing bracket"));
        }
        self.skip_space();
        Ok(false)
    }

    fn string(&mut self) -> Result<String, DocumentError> {
        let mut rest = self.text.as_bytes().get(self.at + 1..).unwrap_or_default().iter();
        let mut end = self.at + 1;
        loop {
            match rest.next() {
                None => return Err(self.wrong("unterminated string starting")),
                Some(b'"') => break,
                Some(b'\\') => {
                    rest.next();
                    end += 2;
                }
                Some(_) => end += 1,
            }
        }
        let text = serde_json::from_str(self.text.get(self.at..=end).unwrap_or_default())
            .map_err(|_| self.wrong("bad escape, control character or unpaired surrogate in the string starting"))?;
        self.at = end + 1;
        Ok(text)
    }

    fn number(&mut self) -> Result<Node<'a>, DocumentError> {
        let from = self.at;
        while matches!(self.peek(), Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) {
            self.at += 1;
        }
        let number = self.since(from);
        // IgnoredAny checks the grammar without converting the number, so any size is accepted.
        match serde_json::from_str::<IgnoredAny>(number) {
            Ok(_) => Ok(Node::Number(number)),
            Err(_) => Err(self.wrong("malformed number ending")),
        }
    }

    fn literal(&mut self) -> Result<Node<'a>, DocumentError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let (node, length) = if rest.starts_with("null") {
            (Node::Null, 4)
        } else if rest.starts_with("true") {
            (Node::Bool(true), 4)
        } else if rest.starts_with("false") {
            (Node::Bool(false), 5)
        } else if rest.is_empty() {
            return Err(self.wrong("a value is missing"));
        } else {
            return Err(self.wrong("expected a value"));
        };
        self.at += length;
        Ok(node)
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn since(&self, from: usize) -> &'a str {
        self.text.get(from..self.at).unwrap_or_default()
    }

    fn wrong(&self, what: &str) -> DocumentError {
        let before = &self.text.as_bytes()[..self.at.min(self.text.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        DocumentError::Json(format!("{what} at line {line} column {column}"))
    }
}

/// Sorts the names, because an object may have 100,000 members.
fn has_duplicate(members: &[Member<'_>]) -> bool {
    let mut names: Vec<&str> = members.iter().map(|member| &*member.name).collect();
    names.sort_unstable();
    names.windows(2).any(|pair| pair[0] == pair[1])
}

/// Writes a node compactly. `read_from`: the length of the text it was read from.
pub(super) fn write(node: &Node<'_>, read_from: usize) -> Zeroizing<String> {
    // Large enough for what the rules can add. A reallocation would leave copies that are not wiped.
    let mut out = Zeroizing::new(String::with_capacity(2 * read_from + 256));
    write_node(node, &mut out);
    out
}

fn write_node(node: &Node<'_>, out: &mut String) {
    match node {
        Node::Null => out.push_str("null"),
        Node::Bool(true) => out.push_str("true"),
        Node::Bool(false) => out.push_str("false"),
        Node::Number(spelling) => out.push_str(spelling),
        Node::String(text) => write_string(text, out),
        Node::Array(elements) => {
            out.push('[');
            for (index, element) in elements.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_node(element, out);
            }
            out.push(']');
        }
        Node::Object(members) => {
            out.push('{');
            for (index, member) in members.0.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_string(&member.name, out);
                out.push(':');
                write_node(&member.value, out);
            }
            out.push('}');
        }
    }
}

fn write_string(text: &str, out: &mut String) {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\x1f' => {
                out.push_str("\\u00");
                out.push(HEX[character as usize >> 4]);
                out.push(HEX[character as usize & 15]);
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    fn rewritten(text: &str) -> Result<String, DocumentError> {
        read(text).map(|node| write(&node, text.len()).to_string())
    }

    #[test]
    fn spelling_of_numbers_order_and_empty_containers_stay() {
        for text in [
            "1.0",
            "1e5",
            "1E+2",
            "-0",
            "-0.0",
            "0.10",
            "12345678901234567890123",
            "1e999999",
            "{}",
            "[]",
            "[{},[],null,true,false]",
            "{\"b\":{\"z\":{}},\"a\":[]}",
            "\"\"",
        ] {
            assert_eq!(rewritten(text).as_deref(), Ok(text));
        }
    }

    #[test]
    fn space_goes_and_characters_are_written_raw() {
        assert_eq!(rewritten(" \t\r\n{ \"a\" : [ 1 , 2 ] , \"b\" : { } } \n").as_deref(), Ok(r#"{"a":[1,2],"b":{}}"#));
        assert_eq!(
            rewritten(r#""\u00e9\/\u20ac \ud83d\ude00 \u2028\u2029 \u007f""#).as_deref(),
            Ok("\"é/€ 😀 \u{2028}\u{2029} \u{7f}\"")
        );
        let controls: String = (0..0x20).map(|code| format!("\\u{code:04X}")).collect();
        assert_eq!(
            rewritten(&format!("\"\\u0022\\u005C{controls}\"")).as_deref(),
            Ok(concat!(
                r#""\"\\\u0000\u0001\u0002\u0003\u0004\u0005\u0006\u0007\b\t\n\u000b\f\r\u000e\u000f"#,
                r#"\u0010\u0011\u0012\u0013\u0014\u0015\u0016\u0017\u0018\u0019\u001a\u001b\u001c\u001d\u001e\u001f""#
            ))
        );
    }

    #[test]
    fn duplicate_members_are_refused_at_any_depth_and_however_spelled() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"a":1,"\u0061":2}"#, r#"[[{"x":{"b":1,"c":2,"b":3}}]]"#] {
            assert!(matches!(read(text), Err(DocumentError::Json(_))), "{text}");
        }
        assert!(read(r#"{"a":{"a":1},"b":{"a":1},"A":1}"#).is_ok());
    }

    #[test]
    fn unpaired_surrogates_are_refused_in_values_and_names() {
        for text in
            [r#""\ud800""#, r#""\udc00""#, r#""\ud83dx""#, r#""\ud83d\ud83d""#, r#""\ude00\ud83d""#, r#"{"\ud800":1}"#]
        {
            assert!(matches!(read(text), Err(DocumentError::Json(_))), "{text}");
        }
    }

    #[test]
    fn sixty_four_levels_are_read_and_one_more_is_refused() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(read(&nested(64)).is_ok());
        assert_eq!(read(&nested(65)).err(), Some(DocumentError::Json("nested too deeply at line 1 column 65".into())));
        // Leaving a level frees it again.
        assert!(read(&format!("[{}]", vec![nested(63); 70].join(","))).is_ok());
    }

    #[test]
    fn a_fault_is_named_with_its_place_and_without_the_text_around_it() {
        let fault = |text: &str| match read(text) {
            Err(DocumentError::Json(reason)) => reason,
            _ => panic!("{text} was read"),
        };
        assert_eq!(fault("{\n  \"a\": secret}"), "expected a value at line 2 column 8");
        assert_eq!(fault(""), "a value is missing at line 1 column 1");
        assert_eq!(fault("{\"a\":1"), "expected a comma or the closing bracket at line 1 column 7");
        assert_eq!(fault("\"secret"), "unterminated string starting at line 1 column 1");
    }

    #[test]
    fn a_hostile_mebibyte_takes_linear_time() {
        let mebibyte = 1 << 20;
        let started = std::time::Instant::now();
        let members = (0..100_000).map(|number| format!("\"{number}\":0")).collect::<Vec<_>>().join(",");
        assert!(read(&format!("{{{members}}}")).is_ok());
        assert!(read(&format!("{{{members},\"99999\":0}}")).is_err());
        assert!(read(&"[".repeat(mebibyte)).is_err());
        assert!(read(&"{\"a\":".repeat(mebibyte / 5)).is_err());
        let deep = format!("{}{}0{}", "[".repeat(64), "0,".repeat(mebibyte / 2), "]".repeat(64));
        assert!(read(&deep).is_ok());
        assert!(read(&format!("[{}{{}}]", "{},".repeat(mebibyte / 3))).is_ok());
        assert!(read(&"\"\\".repeat(mebibyte / 2)).is_err());
        assert!(read(&"1".repeat(mebibyte)).is_ok());
        assert!(read(&format!("\"{}\"", "\\n".repeat(mebibyte / 2))).is_ok());
        // The limit allows for an unoptimised build on a busy machine. A quadratic pass over any of these takes
        // minutes.
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    }

    fn any_json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,3})?",
            any::<String>().prop_map(|text| serde_json::to_string(&text).expect("a string is JSON")),
        ];
        leaf.prop_recursive(5, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(|elements| format!("[ {} ]", elements.join(" ,"))),
                prop::collection::btree_map(any::<String>(), inner, 0..6).prop_map(|members| {
                    let members: Vec<_> = members
                        .iter()
                        .map(|(name, value)| format!("{} :{value}", serde_json::to_string(name).expect("JSON")))
                        .collect();
                    format!("{{{}\n}}", members.join(", "))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_reads_what_serde_json_reads_and_means_the_same(text in any_json()) {
            let written = rewritten(&text).expect("it is JSON");
            prop_assert_eq!(rewritten(&written), Ok(written.clone()));
            // Numbers too large for serde_json's Value are compared by spelling above.
            if let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) {
                prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&written).expect("it is JSON"), value);
            }
        }

        #[test]
        fn it_refuses_what_serde_json_refuses(text in any_json(), cut in any::<prop::sample::Index>(), with in "[\\[\\]{}:,\"\\\\0-9.eEu -]{0,2}") {
            let cut = cut.index(text.len() + 1);
            prop_assume!(text.is_char_boundary(cut));
            let broken = format!("{}{with}{}", &text[..cut], text.get(cut + 1..).unwrap_or_default());
            if serde_json::from_str::<&RawValue>(&broken).is_err() {
                prop_assert!(read(&broken).is_err(), "{}", broken);
            } else if let Err(DocumentError::Json(reason)) = read(&broken) {
                prop_assert!(
                    reason.contains("twice") || reason.contains("unpaired surrogate"),
                    "{}: {}", broken, reason
                );
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in any::<String>()) {
            let _ = read(&text);
        }
    }
}
