//! Parses a file of `EnvironmentFile=` like systemd (`env-file.c`): quotes, escapes, continued lines, comments.
//!
//! systemd drops invalid lines and reports that only in its log. Here each dropped line is reported by number, without
//! its text, which may contain a password.

/// The longest file that is read, in bytes.
pub const MAX_BYTES: u64 = 1024 * 1024;

#[derive(Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The line of the name, counted from 1.
    pub line: usize,
    pub name: String,
    pub value: String,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Dropped {
    pub line: usize,
    pub reason: &'static str,
}

#[derive(Default, Debug, PartialEq, Eq)]
pub struct Read {
    pub assignments: Vec<Assignment>,
    pub dropped: Vec<Dropped>,
}

#[derive(Clone, Copy)]
enum Place {
    BeforeName,
    Name,
    BeforeValue,
    Value,
    Escape,
    Single,
    Double,
    DoubleEscape,
    Comment,
    CommentEscape,
}

/// The assignment that is being parsed.
#[derive(Default)]
struct Draft {
    line: usize,
    name: String,
    value: String,
    /// The length of the value without trailing white space that does not count.
    kept: usize,
}

pub fn read(content: &[u8]) -> Read {
    let text = match std::str::from_utf8(content) {
        Ok(text) => text,
        Err(error) => {
            let before = content.get(..error.valid_up_to()).unwrap_or_default();
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            return Read {
                assignments: Vec::new(),
                dropped: vec![Dropped { line, reason: "it is not valid UTF-8, so systemd ignores the whole file" }],
            };
        }
    };
    let mut read = Read::default();
    let (mut place, mut line, mut draft) = (Place::BeforeName, 1, Draft::default());
    for c in text.chars() {
        let is_end = c == '\n' || c == '\r';
        let is_blank = is_end || c == ' ' || c == '\t';
        place = match place {
            Place::BeforeName if c == '#' || c == ';' => Place::Comment,
            Place::BeforeName if is_blank => Place::BeforeName,
            Place::BeforeName => {
                draft = Draft { line, name: c.into(), ..Draft::default() };
                Place::Name
            }
            Place::Name if is_end => {
                read.dropped.push(Dropped { line: draft.line, reason: "it has no '='" });
                Place::BeforeName
            }
            Place::Name if c == '=' => Place::BeforeValue,
            Place::Name => {
                draft.name.push(c);
                Place::Name
            }
            Place::BeforeValue | Place::Value if is_end => {
                draft.value.truncate(draft.kept);
                read.take(std::mem::take(&mut draft));
                Place::BeforeName
            }
            Place::BeforeValue if c == '\'' => Place::Single,
            Place::BeforeValue if c == '"' => Place::Double,
            Place::BeforeValue | Place::Value if c == '\\' => {
                draft.kept = draft.value.len();
                Place::Escape
            }
            Place::BeforeValue if is_blank => Place::BeforeValue,
            Place::BeforeValue | Place::Value => {
                draft.value.push(c);
                if !is_blank {
                    draft.kept = draft.value.len();
                }
                Place::Value
            }
            // The line break of a continued line is not part of the value.
            Place::Escape if is_end => Place::Value,
            Place::Escape => {
                draft.keep(c);
                Place::Value
            }
            Place::Single if c == '\'' => Place::BeforeValue,
            Place::Double if c == '"' => Place::BeforeValue,
            Place::Double if c == '\\' => Place::DoubleEscape,
            Place::Single | Place::Double => {
                draft.keep(c);
                place
            }
            Place::DoubleEscape => {
                if !"\"\\`$\n".contains(c) {
                    draft.keep('\\');
                }
                if c != '\n' {
                    draft.keep(c);
                }
                Place::Double
            }
            Place::Comment if c == '\\' => Place::CommentEscape,
            Place::Comment if is_end => Place::BeforeName,
            // Up to systemd 253, the next line belongs to the comment.
            Place::Comment | Place::CommentEscape => Place::Comment,
        };
        line += usize::from(c == '\n');
    }
    match place {
        Place::Name => read.dropped.push(Dropped { line: draft.line, reason: "it has no '='" }),
        Place::BeforeValue | Place::Value | Place::Escape => {
            draft.value.truncate(draft.kept);
            read.take(draft);
        }
        Place::Single | Place::Double | Place::DoubleEscape => {
            let reason = "its quoted string does not end: the rest of the file became part of it";
            read.dropped.push(Dropped { line: draft.line, reason });
            read.take(draft);
        }
        Place::BeforeName | Place::Comment | Place::CommentEscape => {}
    }
    read
}

impl Draft {
    fn keep(&mut self, c: char) {
        self.value.push(c);
        self.kept = self.value.len();
    }
}

impl Read {
    fn take(&mut self, Draft { line, name, value, .. }: Draft) {
        let name = name.trim_end();
        let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && name.starts_with(|c: char| !c.is_ascii_digit());
        let reason = if name.starts_with("export ") || name.starts_with("export\t") {
            "it begins with 'export', which only shells understand: remove that word"
        } else if !is_name {
            "the text before '=' is no name of a variable"
        } else if value.chars().any(|c| c.is_ascii_control() && c != '\t' && c != '\n') {
            "its value holds a control character"
        } else {
            self.assignments.push(Assignment { line, name: name.into(), value });
            return;
        };
        self.dropped.push(Dropped { line, reason });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemd_takes_is_taken_as_systemd_takes_it() {
        for (text, wanted) in [
            ("A=b", vec![("A", "b")]),
            ("# c\n;d\n\nA=b\r\nB=c\n", vec![("A", "b"), ("B", "c")]),
            (" A =  b c \t\n", vec![("A", "b c")]),
            ("A='b c ' \nB=\"c\\\"d\\$\\x\" \n", vec![("A", "b c "), ("B", "c\"d$\\x")]),
            ("A=\"b\nc\"\nB='c\\'\n", vec![("A", "b\nc"), ("B", "c\\")]),
            ("A=b\\\nc\\ \nB=\n", vec![("A", "bc "), ("B", "")]),
            ("A=\"b\"c'd'\nB=b'c'\n", vec![("A", "bc'd'"), ("B", "b'c'")]),
            ("A=\"b\" 'c'\n", vec![("A", "bc")]),
            ("# c \\\nA=b\nB=c\n", vec![("B", "c")]),
            ("A=1\nA=2\n", vec![("A", "1"), ("A", "2")]),
            ("A=b#c\n", vec![("A", "b#c")]),
            ("A=b \\\n\n", vec![("A", "b ")]),
        ] {
            let read = read(text.as_bytes());
            let found: Vec<_> = read.assignments.iter().map(|one| (one.name.as_str(), one.value.as_str())).collect();
            assert_eq!((found, read.dropped), (wanted, Vec::new()), "{text:?}");
        }
    }

    #[test]
    fn what_systemd_drops_is_named_by_its_line_and_the_rest_is_taken() {
        for (text, line, reason) in [
            ("A=b\nexport B=canary\n", 2, "'export'"),
            ("A=b\n\ncanary\n", 3, "no '='"),
            ("A=b\ncanary", 2, "no '='"),
            ("my-name=canary\nA=b", 1, "no name"),
            ("1A=canary\nA=b", 1, "no name"),
            ("=canary=x\nA=b", 1, "no name"),
            ("B=can\u{1}ary\nA=b", 1, "control character"),
            ("A=b\nB='canary\nC=d\n", 2, "does not end"),
        ] {
            let read = read(text.as_bytes());
            assert_eq!(read.dropped.iter().map(|it| it.line).collect::<Vec<_>>(), [line], "{text:?}");
            assert!(read.dropped[0].reason.contains(reason), "{text:?}: {:?}", read.dropped);
            assert_eq!(
                read.assignments.iter().filter(|one| one.name == "A" && one.value == "b").count(),
                1,
                "{text:?}"
            );
        }
        let read = read(b"A=b\nB=\xff\n");
        assert_eq!((read.assignments.len(), read.dropped[0].line), (0, 2));
    }
}
