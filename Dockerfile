FROM python:3.13-slim
WORKDIR /app
# The packages of requirements.txt without the test tools, with their own requirements and hashes.
COPY requirements.lock ./
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes --requirement requirements.lock \
    && useradd --system --no-create-home --uid 10001 rewrap \
    && mkdir /data && chown rewrap /data
COPY main.py backends.py ./
COPY rewrap rewrap
# Compiled here once: the user cannot write the result, and each start would take 0.3 s longer.
RUN python -m compileall -q . && chmod -R a+rX .
USER 10001
# GRACE_SECONDS is below the 10 seconds after which `docker stop` kills.
ENV HOST=0.0.0.0 PORT=8000 STORE_URL=sqlite:////data/chat.db GRACE_SECONDS=7 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["python", "-c", "import http.client as h, os; c = h.HTTPConnection('127.0.0.1', os.environ['PORT'], timeout=2); c.request('GET', '/health'); exit(c.getresponse().status != 200)"]
STOPSIGNAL SIGTERM
# Arguments are those of the command line: `docker run rewrap check`, `docker run rewrap probe URL`.
ENTRYPOINT ["python", "main.py"]
