//! One request whose answer may come from nowhere else: no redirects, no reuse, no proxy of the environment. For
//! machines of the local network (UPnP).

use super::{FetchError, GetOptions, HttpClient, HttpConfig, HttpResponse, Url};
use crate::uring::resolve::Resolver;
use crate::uring::socket::SocketOptions;

impl HttpClient {
    /// A client that goes straight to where a URL says, through these sockets.
    pub fn direct(socket: SocketOptions, resolver: Resolver) -> HttpClient {
        let config = HttpConfig {
            socket,
            proxy: None,
            socks: None,
            tls: None,
            ..HttpConfig::from_env(None)
        };
        HttpClient::new(config, resolver)
    }

    /// GET, or POST when there is a body, whose length `fields` must tell. A redirect counts as an answer without a body.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn single(
        &self,
        url: &Url,
        fields: &str,
        body: Option<&str>,
        options: &GetOptions,
    ) -> Result<HttpResponse, FetchError> {
        let (route, _) = self.route(url, None, options.family)?;
        let (method, body) = match body {
            Some(body) => ("POST", body),
            None => ("GET", ""),
        };
        let request = format!(
            "{method} {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {}\r\nConnection: close\r\n{fields}\r\n{body}",
            url.target(),
            url.authority(),
            self.inner.config.user_agent,
        );
        let connection = self.connect(&route, None, &options.deadline).await?;
        let hop = self.exchange(&route, connection, request.into_bytes(), options);
        let hop = hop.await?;
        Ok(HttpResponse {
            status: hop.status,
            body: hop.body,
            url: url.clone(),
            local_ip: hop.local_ip,
        })
    }
}
