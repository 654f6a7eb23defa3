"""All that knows Locust: the locustfile, its workers and coordinator, the web page."""
