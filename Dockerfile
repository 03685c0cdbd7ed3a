FROM python:3.13-slim
WORKDIR /app
COPY extras/requirements.lock extras/
# requirements.txt without the test tools, with all that it draws in, and hashes.
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes --requirement extras/requirements.lock \
    && useradd --system --no-create-home --uid 10001 rewrap \
    && mkdir /data && chown rewrap /data
COPY main.py backends.py ./
COPY extras extras
USER 10001
ENV HOST=0.0.0.0 PORT=8000 STORE_URL=sqlite:////data/chat.db PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/health', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["python", "main.py"]
