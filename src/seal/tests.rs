use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use proptest::prelude::*;
use tempfile::TempDir;
use zeroize::Zeroizing;

use super::*;
use crate::platform::SecureRandom;

/// Not random, but never the same twice.
#[derive(Default)]
struct Counting(AtomicU8);

impl SecureRandom for Counting {
    fn fill(&self, buffer: &mut [u8]) {
        buffer.fill(self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1));
    }
}

fn place(id: &str) -> Place {
    Place::new("hosts", "api_key", id)
}

fn ring(ids: &[u32]) -> KeyRing {
    let (master, platform) = (MasterKey::from_bytes([7; 32]), Counting::default());
    // Every ring draws the same keys, in the order of their numbers.
    let keys: Vec<_> = (1..=ids.iter().copied().max().unwrap_or(0))
        .map(|id| (KeyId(id), KeyRing::new_key(&master, KeyId(id), &platform).unwrap()))
        .filter(|(id, _)| ids.contains(&id.0))
        .collect();
    KeyRing::unlock(&master, &keys).unwrap()
}

fn does_not_open<T>(result: Result<T>) -> bool {
    matches!(result, Err(SealError::DoesNotOpen { .. }))
}

mod values {
    use super::*;

    #[test]
    fn what_was_sealed_opens_at_its_place() {
        let ring = ring(&[1]);
        for plain in [b"".as_slice(), b"x", &[0; 100_000]] {
            let sealed = ring.seal(&place("1"), plain, &Counting::default()).unwrap();
            assert_eq!(ring.open(&place("1"), &sealed).unwrap().as_slice(), plain);
            assert_eq!(sealed.as_bytes().len(), 5 + 24 + plain.len() + 16);
        }
    }

    #[test]
    fn a_value_moved_to_another_table_column_or_id_does_not_open() {
        let ring = ring(&[1]);
        let sealed = ring.seal(&Place::new("ab", "cd", "ef"), b"secret", &Counting::default()).unwrap();
        for (table, column, id) in [
            ("xb", "cd", "ef"),
            ("ab", "xd", "ef"),
            ("ab", "cd", "xf"),
            // The same letters, divided elsewhere.
            ("abc", "d", "ef"),
            ("ab", "cde", "f"),
            ("abcd", "", "ef"),
            ("", "abcd", "ef"),
            ("ab", "cd", ""),
        ] {
            assert!(does_not_open(ring.open(&Place::new(table, column, id), &sealed)), "{table}/{column}/{id}");
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_does_not_open() {
        let ring = ring(&[1, 2, 3, 4]);
        let sealed = ring.seal(&place("1"), b"secret", &Counting::default()).unwrap();
        for bit in 0..sealed.as_bytes().len() * 8 {
            let mut bytes = sealed.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(ring.open(&place("1"), &Sealed::from_bytes(bytes)).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_truncated_or_prolonged_value_does_not_open() {
        let ring = ring(&[1]);
        let sealed = ring.seal(&place("1"), b"secret", &Counting::default()).unwrap();
        for length in 0..sealed.as_bytes().len() {
            let cut = Sealed::from_bytes(sealed.as_bytes()[..length].to_vec());
            assert!(ring.open(&place("1"), &cut).is_err(), "{length}");
        }
        let longer = [sealed.as_bytes(), b"\0"].concat();
        assert!(does_not_open(ring.open(&place("1"), &Sealed::from_bytes(longer))));
    }

    #[test]
    fn an_unknown_key_is_named() {
        let sealed = ring(&[1, 41]).seal(&place("9"), b"secret", &Counting::default()).unwrap();
        let error = ring(&[1, 42]).open(&place("9"), &sealed).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the value at hosts/api_key/9 is sealed with key 41, which is not in the key ring"
        );
    }

    #[test]
    fn the_highest_key_seals_and_the_older_ones_still_open() {
        let (old, both) = (ring(&[2]), ring(&[2, 10]));
        let before = old.seal(&place("1"), b"before", &Counting::default()).unwrap();
        let after = both.seal(&place("1"), b"after", &Counting::default()).unwrap();
        assert_eq!((old.active(), both.active()), (KeyId(2), KeyId(10)));
        assert_eq!((key_of(&before).unwrap(), key_of(&after).unwrap()), (KeyId(2), KeyId(10)));
        assert_eq!(both.open(&place("1"), &before).unwrap().as_slice(), b"before");
        assert_eq!(both.open(&place("1"), &after).unwrap().as_slice(), b"after");
    }

    #[test]
    fn the_same_value_is_never_sealed_the_same() {
        let (ring, platform) = (ring(&[1]), Counting::default());
        let seal = || ring.seal(&place("1"), b"secret", &platform).unwrap();
        assert_ne!(seal(), seal());
    }

    #[test]
    fn a_sealed_value_survives_serde() {
        let sealed = ring(&[1]).seal(&place("1"), b"secret", &Counting::default()).unwrap();
        let text = serde_json::to_string(&sealed).unwrap();
        assert_eq!(serde_json::from_str::<Sealed>(&text).unwrap(), sealed);
    }

    proptest! {
        #[test]
        fn any_value_opens_at_its_own_place_and_at_no_other(
            plain in prop::collection::vec(any::<u8>(), 0..200),
            here in ("[a-b/]{0,3}", "[a-b/]{0,3}", "[a-b/]{0,3}"),
            there in ("[a-b/]{0,3}", "[a-b/]{0,3}", "[a-b/]{0,3}"),
        ) {
            let ring = ring(&[3]);
            let [here, there] = [here, there].map(|(table, column, id)| Place { table, column, id });
            let sealed = ring.seal(&here, &plain, &Counting::default()).unwrap();
            prop_assert_eq!(ring.open(&here, &sealed).unwrap().to_vec(), plain);
            prop_assert_eq!(ring.open(&there, &sealed).is_ok(), here == there);
        }

        #[test]
        fn arbitrary_bytes_never_open_nor_panic(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            prop_assert!(ring(&[1]).open(&place("1"), &Sealed::from_bytes(bytes)).is_err());
        }
    }
}

mod data_keys {
    use super::*;

    #[test]
    fn data_keys_open_with_their_master_key_only() {
        let (master, platform) = (MasterKey::from_bytes([7; 32]), Counting::default());
        let key = KeyRing::new_key(&master, KeyId(3), &platform).unwrap();
        assert!(KeyRing::unlock(&master, &[(KeyId(3), key.clone())]).is_ok());
        let error = KeyRing::unlock(&MasterKey::from_bytes([8; 32]), &[(KeyId(3), key.clone())]).unwrap_err();
        assert!(matches!(error, SealError::WrongMasterKey(KeyId(3))), "{error}");
        // With another number it is another key's record; the master key is not at fault.
        assert!(matches!(KeyRing::unlock(&master, &[(KeyId(4), key)]), Err(SealError::Malformed(_))));
    }

    #[test]
    fn a_ring_without_a_key_is_refused() {
        assert!(matches!(KeyRing::unlock(&MasterKey::from_bytes([7; 32]), &[]), Err(SealError::NoKeys)));
    }

    #[test]
    fn the_number_of_the_secretbox_key_is_no_data_key() {
        let (master, platform) = (MasterKey::from_bytes([7; 32]), Counting::default());
        assert!(matches!(KeyRing::new_key(&master, KeyId(0), &platform), Err(SealError::ReservedKeyId)));
        let sealed = KeyRing::new_key(&master, KeyId(1), &platform).unwrap();
        assert!(matches!(KeyRing::unlock(&master, &[(KeyId(0), sealed)]), Err(SealError::ReservedKeyId)));
    }

    #[test]
    fn a_data_key_is_no_value_and_a_value_no_data_key() {
        let (master, platform) = (MasterKey::from_bytes([7; 32]), Counting::default());
        let key = KeyRing::new_key(&master, KeyId(1), &platform).unwrap();
        let ring = KeyRing::unlock(&master, &[(KeyId(1), key.clone())]).unwrap();
        assert!(key_of(&key).is_err() && ring.open(&Place::new("sealing_keys", "key", 1), &key).is_err());
        let value = ring.seal(&Place::new("sealing_keys", "key", 1), &[9; 32], &platform).unwrap();
        assert!(matches!(KeyRing::unlock(&master, &[(KeyId(1), value)]), Err(SealError::Malformed(_))));
    }

    /// Draws the same bytes each time, so that all keys are equal and only the associated data tells them apart.
    struct Stuck;

    impl SecureRandom for Stuck {
        fn fill(&self, buffer: &mut [u8]) {
            buffer.fill(7);
        }
    }

    #[test]
    fn format_and_key_id_cannot_be_exchanged_even_among_equal_keys() {
        let master = MasterKey::from_bytes([7; 32]);
        let keys = [1, 2].map(|id| (KeyId(id), KeyRing::new_key(&master, KeyId(id), &Stuck).unwrap()));
        let ring = KeyRing::unlock(&master, &keys).unwrap();
        let place = Place::new("sealing_keys", "key", 2);
        let sealed = ring.seal(&place, &[9; 32], &Stuck).unwrap();
        assert!(ring.open(&place, &sealed).is_ok());

        let mut of_key_1 = sealed.as_bytes().to_vec();
        of_key_1[4] = 1;
        assert!(does_not_open(ring.open(&place, &Sealed::from_bytes(of_key_1))));
        let mut as_data_key = sealed.as_bytes().to_vec();
        as_data_key[0] = keys[0].1.as_bytes()[0];
        let unlocked = KeyRing::unlock(&master, &[(KeyId(2), Sealed::from_bytes(as_data_key))]);
        assert!(matches!(unlocked, Err(SealError::WrongMasterKey(_))));
    }

    #[test]
    fn debug_shows_no_key() {
        let key = [0xAB; 32];
        let ring = ring(&[1, 2]).with_secretbox_key(Zeroizing::new(key));
        let sealed = ring.seal(&place("1"), b"secret", &Counting::default()).unwrap();
        let shown = format!("{:?} {ring:?} {sealed:?}", MasterKey::from_bytes(key));
        assert_eq!(shown, "*** KeyRing { keys: [KeyId(1), KeyId(2)], active: KeyId(2), .. } Sealed(51 bytes)");
    }
}

mod secretbox_form {
    use super::*;

    fn key() -> [u8; 32] {
        std::array::from_fn(|index| index as u8)
    }

    /// Made by libsodium (PyNaCl's `SecretBox`), with the bytes 0, 1, 2 … as the key and 100, 101 … as the nonce.
    const TEXT: &str = "sbox:v1:ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7FgYscKS1bz1XCujogwbTZHHStL35H72dn6dIp0HVmmBqm1Xl09QHa5Z/Ffc/8oHskBq+fn1W1YHDNnYMZDO8RbL1zXd84hk9b44wb/vd+EQ37jQZ6EgnqsnubIFg9dmzNu75YtQ=";
    const PLAIN: &str = "sk-tést/Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6 and a second block of text to pass 64 bytes";
    const EMPTY: &str = "sbox:v1:ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp79JVy1hlCgePIf7tOIQaTLA==";

    struct FixedNonce;

    impl SecureRandom for FixedNonce {
        fn fill(&self, buffer: &mut [u8]) {
            for (index, byte) in buffer.iter_mut().enumerate() {
                *byte = 100 + index as u8;
            }
        }
    }

    #[test]
    fn what_libsodium_sealed_opens_and_is_written_the_same() {
        assert_eq!(secretbox::open(&key(), TEXT).unwrap().as_slice(), PLAIN.as_bytes());
        assert_eq!(secretbox::open(&key(), EMPTY).unwrap().as_slice(), b"");
        assert_eq!(secretbox::seal(&key(), PLAIN.as_bytes(), &FixedNonce).unwrap(), TEXT);
        assert_eq!(secretbox::seal(&key(), b"", &FixedNonce).unwrap(), EMPTY);
    }

    #[test]
    fn altered_texts_and_other_keys_do_not_open() {
        let mut other = key();
        other[31] ^= 1;
        assert!(secretbox::open(&other, TEXT).is_err());
        let bytes = BASE64_STANDARD.decode(&TEXT[8..]).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let text = format!("sbox:v1:{}", BASE64_STANDARD.encode(bytes));
            assert!(secretbox::open(&key(), &text).is_err(), "bit {bit}");
        }
        for length in 0..TEXT.len() {
            assert!(secretbox::open(&key(), &TEXT[..length]).is_err(), "{length}");
        }
        assert!(secretbox::open(&key(), &TEXT.replacen("v1", "v2", 1)).is_err());
    }

    #[test]
    fn a_ring_opens_the_form_only_with_its_key() {
        let sealed = Sealed::from_bytes(TEXT.as_bytes().to_vec());
        assert_eq!(key_of(&sealed).unwrap(), KeyId::SECRETBOX);
        assert!(matches!(ring(&[1]).open(&place("1"), &sealed), Err(SealError::NoSecretboxKey { .. })));
        assert!(does_not_open(ring(&[1]).with_secretbox_key(Zeroizing::new([9; 32])).open(&place("1"), &sealed)));
        let ring = ring(&[1]).with_secretbox_key(Zeroizing::new(key()));
        assert_eq!(ring.open(&place("1"), &sealed).unwrap().as_slice(), PLAIN.as_bytes());
    }

    #[test]
    fn a_ring_writes_the_form_on_request() {
        let ring = ring(&[1]).with_secretbox_key(Zeroizing::new(key()));
        let sealed = ring.seal_as_secretbox(&place("1"), PLAIN.as_bytes(), &FixedNonce).unwrap();
        assert_eq!(sealed.as_bytes(), TEXT.as_bytes());
        assert_eq!(ring.seal(&place("1"), b"", &FixedNonce).unwrap().as_bytes()[0], 1);
        assert!(matches!(
            super::ring(&[1]).seal_as_secretbox(&place("1"), b"", &FixedNonce),
            Err(SealError::NoSecretboxKey { .. })
        ));
    }
}

mod master_key_file {
    use super::*;

    fn load(dir: &TempDir) -> Result<(MasterKey, bool)> {
        MasterKey::load_or_create(&dir.path().join("master.key"), None, &Counting::default())
    }

    fn write(path: &Path, content: &[u8], mode: u32) {
        fs::write(path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn names(dir: &TempDir) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_key_is_made_once_and_read_ever_after() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("master.key");
        assert!(MasterKey::load(&path, None).unwrap().is_none());
        let (made, created) = load(&dir).unwrap();
        assert!(created);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(names(&dir), ["master.key"]);

        let written = fs::read(&path).unwrap();
        let (read, created) = load(&dir).unwrap();
        assert!(!created);
        assert_eq!(read.bytes(), made.bytes());
        assert_eq!(fs::read(&path).unwrap(), written);
        assert_eq!(MasterKey::load(&path, None).unwrap().unwrap().bytes(), made.bytes());
    }

    #[test]
    fn a_key_is_read_as_hex_or_as_bytes() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("master.key");
        let hex = "aB".repeat(32);
        for content in [hex.as_bytes(), format!("{hex}\n").as_bytes(), &[0xAB; 32]] {
            write(&path, content, 0o600);
            assert_eq!(load(&dir).unwrap().0.bytes(), &[0xAB; 32]);
        }
    }

    #[test]
    fn a_file_that_holds_no_key_is_refused_and_left_alone() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("master.key");
        let hex = "ab".repeat(32);
        for content in
            ["", "\n", &hex[1..], &format!("{hex}a"), &format!("{hex}\n\n"), &hex.replace('a', "g"), &hex.repeat(4)]
        {
            write(&path, content.as_bytes(), 0o600);
            let error = load(&dir).unwrap_err();
            assert!(matches!(error, SealError::KeyFileIsMalformed { .. }), "{content:?}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_what_to_do() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("master.key");
        for mode in [0o640, 0o604, 0o620, 0o644, 0o601] {
            write(&path, "ab".repeat(32).as_bytes(), mode);
            let error = load(&dir).unwrap_err().to_string();
            assert!(error.contains("chmod 600") && error.contains(&format!("{mode:04o}")), "{error}");
        }
        for mode in [0o600, 0o400] {
            write(&path, "ab".repeat(32).as_bytes(), mode);
            assert!(load(&dir).is_ok());
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }

    #[test]
    fn a_link_or_a_directory_in_its_place_is_refused() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("master.key");
        write(&dir.path().join("real"), "ab".repeat(32).as_bytes(), 0o600);
        symlink("real", &path).unwrap();
        assert!(matches!(load(&dir), Err(SealError::KeyFileIsALink { .. })));
        fs::remove_file(&path).unwrap();
        symlink("missing", &path).unwrap();
        assert!(matches!(load(&dir), Err(SealError::KeyFileIsALink { .. })));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(load(&dir), Err(SealError::KeyFileIsNone { .. })));
    }

    #[test]
    fn what_a_crash_left_behind_does_not_hinder_and_goes() {
        let dir = TempDir::new().unwrap();
        // Half-written, before the link; the second has the very name that is drawn next.
        write(&dir.path().join(".master.key.0000000000000000.tmp"), b"abc", 0o600);
        write(&dir.path().join(".master.key.0202020202020202.tmp"), b"", 0o600);
        write(&dir.path().join(".other.tmp"), b"not ours", 0o600);
        let (made, created) = load(&dir).unwrap();
        assert!(created);
        assert_eq!(names(&dir), [".other.tmp", "master.key"]);

        // After the link, before the temporary name was removed.
        fs::hard_link(dir.path().join("master.key"), dir.path().join(".master.key.0101010101010101.tmp")).unwrap();
        let (read, created) = load(&dir).unwrap();
        assert!(!created);
        assert_eq!(read.bytes(), made.bytes());
        assert_eq!(names(&dir), [".other.tmp", "master.key"]);
    }

    #[test]
    fn racing_first_boots_agree_on_one_key() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("master.key");
        let made: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|seed| {
                    let path = &path;
                    scope.spawn(move || {
                        let platform = Counting(AtomicU8::new(seed * 16));
                        MasterKey::load_or_create(path, None, &platform).unwrap()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|(_, created)| *created).count(), 1);
        assert!(made.iter().all(|(key, _)| key.bytes() == made[0].0.bytes()));
        assert_eq!(names(&dir), ["master.key"]);
    }

    #[test]
    fn a_missing_directory_is_named() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("missing/master.key");
        let error = MasterKey::load_or_create(&path, None, &Counting::default()).unwrap_err();
        assert!(
            matches!(&error, SealError::KeyFile { source, .. } if source.kind() == std::io::ErrorKind::NotFound),
            "{error}"
        );
        assert!(error.to_string().contains("missing/master.key"), "{error}");
    }

    /// Lets another process make its key at the worst moment: after this one saw that there is none.
    struct Overtaken<'a>(&'a Path);

    impl SecureRandom for Overtaken<'_> {
        fn fill(&self, buffer: &mut [u8]) {
            write(self.0, "cd".repeat(32).as_bytes(), 0o600);
            buffer.fill(1);
        }
    }

    #[test]
    fn a_key_that_another_process_made_meanwhile_is_never_overwritten() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("master.key");
        let (key, created) = MasterKey::load_or_create(&path, None, &Overtaken(&path)).unwrap();
        assert!(!created);
        assert_eq!(key.bytes(), &[0xCD; 32]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "cd".repeat(32));
        assert_eq!(names(&dir), ["master.key"]);
    }

    #[test]
    fn the_credential_goes_before_the_file() {
        let (state, credentials) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let path = state.path().join("master.key");
        let load = || MasterKey::load_or_create(&path, Some(credentials.path()), &Counting::default());
        // There is no credential: the file is used.
        let (from_file, created) = load().unwrap();
        assert!(created);
        // The unit's placeholder for a missing credential.
        write(&credentials.path().join("master.key"), b"\0", 0o440);
        let (again, created) = load().unwrap();
        assert!(!created && again.is(&from_file));
        fs::remove_file(credentials.path().join("master.key")).unwrap();
        // The mode that systemd sets for a user other than root, through an ACL.
        write(&credentials.path().join("master.key"), "cd".repeat(32).as_bytes(), 0o440);
        let (from_credential, created) = load().unwrap();
        assert!(!created);
        assert_eq!(from_credential.bytes(), &[0xCD; 32]);
        assert_ne!(from_credential.bytes(), from_file.bytes());
        // A bad credential must not make it take another key.
        fs::set_permissions(credentials.path().join("master.key"), fs::Permissions::from_mode(0o444)).unwrap();
        assert!(matches!(load(), Err(SealError::KeyFileIsOpen { .. })));
    }
}
