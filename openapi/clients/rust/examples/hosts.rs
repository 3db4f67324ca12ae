//! Registers a host, and lists all hosts page by page.

use std::{env, fs};

use codex_authd_client::Client;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = env::args().nth(1).unwrap_or_else(|| "https://auth.example.com:9443".into());
    let (certificate, key) = (fs::read("alice.crt")?, fs::read_to_string("alice.key")?);
    let admin =
        Client::connect(&url).ca_pem(fs::read("server-ca.crt")?).client_certificate(certificate, key).build()?;
    let made = admin.register_host().body_map(|body| body.fqdn("build-7.example.com")).send().await?;
    println!("{}", made.data.installer.command.expose());
    let mut page = admin.list_hosts().send().await?;
    loop {
        page.data.hosts.iter().for_each(|host| println!("{}", host.fqdn));
        let Some(next) = page.data.next.clone() else { return Ok(()) };
        page = admin.list_hosts().cursor(next).send().await?;
    }
}
